"""
What changes the time of a guided step at the released size, and how far it is from the plain one.

    python benchmarks/step_variants.py [--layers 4] [--rounds 8] [--only WORD ...]

Blocks of the full-size AudioX with random weights, on a CPU. All variants take their steps in turn. The ratio is the
time of the plain transformer's step, in float32, over that of the variant, by the fastest step of each; the deviation
is the largest difference of the outputs, relative to the largest value; the weights are relative to float32's. Rows
that need torchao are left out where that is not installed.
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
from diffusers.utils import is_torchao_available
from guided_step import Ours, inputs
from torch.utils.mkldnn import to_mkldnn


def plain(side: Ours) -> None:
    pass


def without_kept_context(side: Ours) -> None:
    """The context as a tensor, for both halves of guidance: all of it is worked out in each step."""
    context = side.context.hidden_states
    side.context = torch.cat((torch.zeros_like(context), context))


def fused(side: Ours) -> None:
    side.model.fuse_qkv_projections()


def compiled(side: Ours) -> None:
    side.model.compile_repeated_blocks(fullgraph=True)


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
        side.model.time_proj.float()  # as `from_pretrained` leaves it
        side.start(side.context.hidden_states.to(dtype))

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
    "plain": plain,
    "context not kept": without_kept_context,
    "`fuse_qkv_projections()`": fused,
    "`compile_repeated_blocks()`": compiled,
    '`torch.set_float32_matmul_precision("medium")`': medium_precision,
    "`torch.utils.mkldnn.to_mkldnn`": through_mkldnn,
    "bfloat16": cast(torch.bfloat16),
    "float16": cast(torch.float16),
    "weights kept in float8, bfloat16": layerwise_casting(torch.float8_e4m3fn, torch.bfloat16),
}
if is_torchao_available():
    VARIANTS["torchao, int8 weights"] = quantized("Int8WeightOnlyConfig")
    VARIANTS["torchao, int8 weights and products"] = quantized("Int8DynamicActivationInt8WeightConfig")


def weight_bytes(tensor: torch.Tensor) -> int:
    """Of a tensor, or of those that a quantized one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(weight_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def model_bytes(model: torch.nn.Module) -> int:
    return sum(weight_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="the variants with one of these words in their names"
    )
    args = parser.parse_args()
    latents, context = inputs()
    timestep = torch.tensor([0.5])

    def step(side: Ours) -> torch.Tensor:
        return side.step(latents.to(side.model.dtype), timestep).float()

    names = [name for name in VARIANTS if name == "plain" or not args.only or any(word in name for word in args.only)]
    original = Ours(args.layers)
    sides, outputs = {}, {}
    for name in names:
        sides[name] = copy.deepcopy(original)
        sides[name].start(context)
        VARIANTS[name](sides[name])
        outputs[name] = step(sides[name])
    seconds = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            step(side)
            seconds[name].append(time.perf_counter() - started)
    print(f"CPU, {torch.get_num_threads()} threads, {args.layers} layers\n")
    print("| | ratio | deviation | weights |\n|---|---|---|---|")
    for name in names:
        deviation = (outputs[name] - outputs["plain"]).abs().max() / outputs["plain"].abs().max()
        share = model_bytes(sides[name].model) / model_bytes(original.model)
        print(f"| {name} | {min(seconds['plain']) / min(seconds[name]):.2f} | {deviation:.0e} | {share:.2f} |")


if __name__ == "__main__":
    main()
