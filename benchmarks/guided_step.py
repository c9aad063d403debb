"""
Compare a guided step of the full-size AudioX with diffusers' `StableAudioDiTModel`, in float32 on a CPU.

    python benchmarks/guided_step.py [--rounds 5] [--layers 24] [--matmul_precision highest|high|medium]

The baseline has the same size and the same random weights, and is called as in `StableAudioPipeline`: both halves of
guidance in one batch, rotary embeddings computed once. Both models take steps in turns and compute the same velocity. Peak
memory is measured in a new process for each. The lower bound is the time of the step's matrix products at the speed of a
large product (2048 rows).
"""

import statistics
import time
from argparse import SUPPRESS

import torch
from common import create_parser, process_gigabytes, run_process
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch.utils.flop_counter import FlopCounterMode

from audiox_diffusers import AudioXTransformer2DModel

GUIDANCE = 7.0
CONTEXT_TOKENS = 471  # 128 of video, 128 of text, 215 of audio
WARM_UP = 1

# Our names and those of diffusers.
RENAMED = {
    "time_proj.weight": "time_proj.weight",
    "time_embed.linear_1": "timestep_proj.0",
    "time_embed.linear_2": "timestep_proj.2",
    "context_embed.linear_1": "cross_attention_proj.0",
    "context_embed.linear_2": "cross_attention_proj.2",
}


class Ours:
    def __init__(self, layers: int):
        torch.manual_seed(0)
        self.model = AudioXTransformer2DModel(num_layers=layers).eval()

    def start(self, context: torch.Tensor) -> None:
        self.context = self.model.project_context(context)

    def step(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        latents = torch.cat((latents, latents))
        velocity = self.model(latents, timestep.expand(2), self.context, return_dict=False)[0]
        unconditional, conditional = velocity.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)


class Baseline:
    def __init__(self, layers: int):
        torch.manual_seed(0)
        self.model = StableAudioDiTModel(sample_size=236, num_layers=layers).eval()
        self.rotary = get_1d_rotary_pos_embed(32, 237, use_real=True, repeat_interleave_real=False)

    def load(self, ours: AudioXTransformer2DModel) -> None:
        """Copy our weights; weights that we do not have become zero."""
        state_dict = {name: torch.zeros_like(value) for name, value in self.model.state_dict().items()}
        for name, value in ours.state_dict().items():
            for own, other in RENAMED.items():
                name = name.replace(own, other)
            state_dict[name].copy_(value.reshape(state_dict[name].shape))
        self.model.load_state_dict(state_dict)

    def start(self, context: torch.Tensor) -> None:
        self.context = torch.cat((torch.zeros_like(context), context))
        self.globals = torch.zeros(2, 1, self.model.config.global_states_input_dim)

    def step(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        latents = torch.cat((latents, latents))
        velocity = self.model(
            latents, timestep.expand(2), self.context, self.globals, rotary_embedding=self.rotary, return_dict=False
        )[0]
        unconditional, conditional = velocity.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)


SIDES = {"ours": Ours, "baseline": Baseline}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 64, 236, generator=generator), torch.randn(1, CONTEXT_TOKENS, 768, generator=generator)


@torch.no_grad()
def peak_memory(name: str, layers: int) -> None:
    """Print the peak memory of this process in GB after three steps."""
    side, (latents, context) = SIDES[name](layers), inputs()
    side.start(context)
    for time_left in (0.9, 0.6, 0.3):
        side.step(latents, torch.tensor([time_left]))
    print(process_gigabytes("VmHWM"))


@torch.no_grad()
def matmul_rate(size: int = 2048) -> float:
    """Return operations per second of a square float32 matrix product, the best of five."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


@torch.no_grad()
def compare(layers: int, rounds: int) -> None:
    ours, baseline = Ours(layers), Baseline(layers)
    baseline.load(ours.model)
    latents, context = inputs()
    seconds: dict[str, list[float]] = {"ours": [], "baseline": []}
    for side in (ours, baseline):
        side.start(context)
    for index in range(WARM_UP + rounds):
        timestep = torch.tensor([0.9 - 0.8 * index / (WARM_UP + rounds)])
        velocities = []
        for name, side in (("baseline", baseline), ("ours", ours)):
            started = time.perf_counter()
            velocities.append(side.step(latents, timestep))
            seconds[name].append(time.perf_counter() - started)
        difference = (velocities[0] - velocities[1]).abs().max() / velocities[0].abs().max()
        assert difference < 1e-4, difference
    rate = matmul_rate()
    print(f"largest difference of the outputs, relative to the largest value: {difference:.1e}")
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s; {torch.get_num_threads()} threads")
    print("\n| | seconds per step | GFLOP per step | lower bound, seconds | peak memory, GB |")
    print("|---|---|---|---|---|")
    for name, side in (("baseline", baseline), ("ours", ours)):
        counter = FlopCounterMode(display=False)
        with counter:
            side.step(latents, timestep)
        operations = counter.get_total_flops()
        precision = torch.get_float32_matmul_precision()
        (peak,) = run_process("--peak_memory", name, "--layers", layers, "--matmul_precision", precision)
        median = statistics.median(seconds[name][WARM_UP:])
        print(f"| {name} | {median:.2f} | {operations / 1e9:.0f} | {operations / rate:.2f} | {peak:.2f} |")
    ratios = [a / b for a, b in zip(seconds["baseline"][WARM_UP:], seconds["ours"][WARM_UP:])]
    fastest = min(seconds["baseline"]) / min(seconds["ours"])
    print(
        f"\nours is {statistics.median(ratios):.3f} times as fast ({min(ratios):.3f} to {max(ratios):.3f} over rounds)"
    )
    print(f"the fastest step of ours is {fastest:.3f} times as fast as the fastest of the baseline")


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--layers", type=int, default=24, help="transformer blocks (default: 24)")
    parser.add_argument(
        "--matmul_precision",
        choices=("highest", "high", "medium"),
        default="highest",
        help="see `torch.set_float32_matmul_precision`",
    )
    parser.add_argument("--peak_memory", choices=SIDES, help=SUPPRESS)
    args = parser.parse_args()
    torch.set_float32_matmul_precision(args.matmul_precision)
    if args.peak_memory:
        peak_memory(args.peak_memory, args.layers)
    else:
        compare(args.layers, args.rounds)


if __name__ == "__main__":
    main()
