"""
How many prompts a minute a pipeline makes sounds for, in batches and one at a time.

    python benchmarks/batch_throughput.py [--sizes 1 4 16] [--steps 25] [--guidance 7] [--rounds 3] [--model FOLDER]

The same prompts and seeds go through one at a time and in batches of each size, in turn, some rounds of it after one
that does not count; each way is given its best round, and ratios are to one at a time, above 1 where the batch is
faster. On a machine that does other work too the seconds that the CPU spent tell more than those that passed. Without
--model it is the small model. Sounds are decoded; the difference is the largest one to those made alone, over the peak.
"""

import argparse
import time

import numpy as np
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.small_model import create_small_pipeline

WORDS = ("rain", "a dog barks", "waves on a beach", "a bell", "wind", "steps on gravel", "birds", "an engine")


def make(pipe: AudioXPipeline, count: int, size: int, **kwargs) -> tuple[np.ndarray, float, float]:
    """The sounds of `count` prompts, made `size` at a time, the seconds that took, and those of the CPU."""
    start, used = time.perf_counter(), time.process_time()
    sounds = []
    for first in range(0, count, size):
        numbers = range(first, min(first + size, count))
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        prompts = [f"{WORDS[number % len(WORDS)]} {number}" for number in numbers]
        sounds.append(pipe(prompt=prompts, generator=generators, **kwargs).audios)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.concatenate(sounds), time.perf_counter() - start, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--count", type=int, default=16, help="prompts of each round")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", metavar="FOLDER")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = AudioXPipeline.from_pretrained(args.model) if args.model else create_small_pipeline()
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}

    alone, *_ = make(pipe, args.count, 1, **kwargs)
    peak, differences = np.abs(alone).max(), {}
    for size in args.sizes:
        sounds, *_ = make(pipe, args.count, size, **kwargs)
        differences[size] = np.abs(sounds - alone).max()
    seconds = {size: [] for size in dict.fromkeys([1, *args.sizes])}
    for _ in range(args.rounds):
        for size, times in seconds.items():
            times.append(make(pipe, args.count, size, **kwargs)[1:])

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, float32, {args.count} prompts, {args.steps} steps, guidance {args.guidance:g}\n")
    # The best of each over the rounds: seconds, and seconds of the CPU.
    best = {size: [min(column) for column in zip(*times, strict=True)] for size, times in seconds.items()}
    print("| batch | prompts a minute | ratio | CPU seconds a prompt | ratio | difference |\n" + "|---" * 6 + "|")
    for size in args.sizes:
        passed, used = best[size]
        ratios = [one / own for one, own in zip(best[1], best[size], strict=True)]
        print(
            f"| {size} | {60 * args.count / passed:.1f} | {ratios[0]:.2f} | {used / args.count:.2f} | {ratios[1]:.2f}"
            f" | {differences[size] / peak:.0e} |"
        )


if __name__ == "__main__":
    main()
