"""
Measure speed and accuracy of variants of a guided step at the released size, on a CPU.

    python benchmarks/step_variants.py [--layers 4] [--rounds 8] [--only WORD ...]

The model has a few blocks of the full-size AudioX with random weights. All variants take steps in turns. The speed is that
of the fastest step relative to the default in float32; the deviation is the largest difference of the outputs relative to
the largest value; the memory of the weights is relative to float32. Variants with torchao are skipped if it is not
installed.
"""

import copy
import time
from collections.abc import Callable

import torch
from common import create_parser, hardware
from diffusers.utils import is_torchao_available
from guided_step import Ours, inputs
from torch.utils.mkldnn import to_mkldnn


def default(side: Ours) -> None:
    pass


def without_kept_context(side: Ours) -> None:
    """Pass the context as a tensor for both halves of guidance, so that each step projects it again."""

    def start(context: torch.Tensor) -> None:
        side.context = torch.cat((torch.zeros_like(context), context))

    side.start = start


def fused(side: Ours) -> None:
    side.model.fuse_qkv_projections()


def compiled(side: Ours) -> None:
    side.model.compile_repeated_blocks(fullgraph=True)


def compiled_without_kept_context(side: Ours) -> None:
    compiled(side)
    without_kept_context(side)


def medium_precision(side: Ours) -> None:
    step = side.step

    def run(*args: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision("medium")
        try:
            return step(*args)
        finally:
            torch.set_float32_matmul_precision("highest")

    side.step = run


def through_mkldnn(side: Ours) -> None:
    side.model = to_mkldnn(side.model)


def cast(dtype: torch.dtype) -> Callable[[Ours], None]:
    def change(side: Ours) -> None:
        side.model.to(dtype)
        side.model.time_proj.float()  # as `from_pretrained` does

    return change


def layerwise_casting(storage: torch.dtype, compute: torch.dtype) -> Callable[[Ours], None]:
    def change(side: Ours) -> None:
        cast(compute)(side)
        side.model.enable_layerwise_casting(storage, compute)

    return change


def quantized(name: str) -> Callable[[Ours], None]:
    def change(side: Ours) -> None:
        from torchao import quantization

        quantization.quantize_(side.model.transformer_blocks, getattr(quantization, name)())

    return change


VARIANTS = {
    "default": default,
    "context not kept": without_kept_context,
    "`fuse_qkv_projections()`": fused,
    "`compile_repeated_blocks()`": compiled,
    "`compile_repeated_blocks()`, context not kept": compiled_without_kept_context,
    '`torch.set_float32_matmul_precision("medium")`': medium_precision,
    "`torch.utils.mkldnn.to_mkldnn`": through_mkldnn,
    "bfloat16": cast(torch.bfloat16),
    "float16": cast(torch.float16),
    "weights stored in float8, bfloat16": layerwise_casting(torch.float8_e4m3fn, torch.bfloat16),
}
if is_torchao_available():
    VARIANTS["torchao, int8 weights"] = quantized("Int8WeightOnlyConfig")
    VARIANTS["torchao, int8 weights and products"] = quantized("Int8DynamicActivationInt8WeightConfig")


def weight_bytes(tensor: torch.Tensor) -> int:
    """Return the size of a tensor, or of the parts of a quantized one."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(weight_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def model_bytes(model: torch.nn.Module) -> int:
    return sum(weight_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


@torch.no_grad()
def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--layers", type=int, default=4, help="transformer blocks (default: 4)")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each variant (default: 8)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only variants with one of these words in their names"
    )
    args = parser.parse_args()
    latents, context = inputs()
    timestep = torch.tensor([0.5])

    def step(side: Ours) -> torch.Tensor:
        return side.step(latents.to(side.model.dtype), timestep).float()

    names = [
        name for name in VARIANTS if name == "default" or not args.only or any(word in name for word in args.only)
    ]
    original = Ours(args.layers)
    sides, outputs = {}, {}
    for name in names:
        sides[name] = copy.deepcopy(original)
        VARIANTS[name](sides[name])
        sides[name].start(context.to(sides[name].model.dtype))
        outputs[name] = step(sides[name])
    seconds = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            step(side)
            seconds[name].append(time.perf_counter() - started)
    print(f"{hardware()}, {args.layers} layers\n")
    print("| | speed | deviation | weights |\n|---|---|---|---|")
    for name in names:
        deviation = (outputs[name] - outputs["default"]).abs().max() / outputs["default"].abs().max()
        share = model_bytes(sides[name].model) / model_bytes(original.model)
        print(f"| {name} | {min(seconds['default']) / min(seconds[name]):.2f} | {deviation:.0e} | {share:.2f} |")


if __name__ == "__main__":
    main()
