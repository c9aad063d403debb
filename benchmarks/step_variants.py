"""
What changes the time of a guided step and not its result: fused projections, compiled blocks.

    python benchmarks/step_variants.py [--layers 4] [--rounds 8]

Blocks of the full-size AudioX with random weights, in float32 on a CPU. All variants take their steps in turn. The
ratio is the time of the plain transformer's step over that of the variant, by the fastest step of each; the deviation
is the largest difference of the outputs, relative to the largest value.
"""

import argparse
import time

import torch
from guided_step import Ours, inputs


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


VARIANTS = {
    "plain": plain,
    "context not kept": without_kept_context,
    "fuse_qkv_projections()": fused,
    "compile_repeated_blocks()": compiled,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    latents, context = inputs()
    timestep = torch.tensor([0.5])
    sides, outputs = {}, {}
    for name, change in VARIANTS.items():
        sides[name] = Ours(args.layers)
        sides[name].start(context)
        change(sides[name])
        outputs[name] = sides[name].step(latents, timestep)
    seconds = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side.step(latents, timestep)
            seconds[name].append(time.perf_counter() - started)
    print("| | ratio | deviation |\n|---|---|---|")
    for name in VARIANTS:
        deviation = (outputs[name] - outputs["plain"]).abs().max() / outputs["plain"].abs().max()
        print(f"| {name} | {min(seconds['plain']) / min(seconds[name]):.2f} | {deviation:.0e} |")


if __name__ == "__main__":
    main()
