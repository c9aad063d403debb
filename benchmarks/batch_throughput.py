"""
Measure how many prompts per minute a pipeline handles in batches and one at a time.

    python benchmarks/batch_throughput.py [--sizes 1 4 16] [--steps 25] [--guidance 7] [--rounds 3] [--model FOLDER]

All sizes run in turns with the same prompts and seeds, after a warm-up round. The table has the best round of each size;
ratios are relative to one at a time, above 1 if the batch is faster. On a machine that is busy otherwise, CPU seconds are
more reliable than elapsed time. The difference is the largest one between sounds of a batch and those of single prompts,
relative to the peak.
"""

import time

import numpy as np
import torch
from common import create_parser, find_device, hardware, quiet, seeded

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.testing import create_small_pipeline

WORDS = ("rain", "a dog barks", "waves on a beach", "a bell", "wind", "steps on gravel", "birds", "an engine")


def generate(pipe: AudioXPipeline, count: int, size: int, **kwargs) -> tuple[np.ndarray, float, float]:
    """Return the sounds of `count` prompts in batches of `size`, the elapsed seconds and the CPU seconds."""
    start, used = time.perf_counter(), time.process_time()
    sounds = []
    for first in range(0, count, size):
        numbers = range(first, min(first + size, count))
        prompts = [f"{WORDS[number % len(WORDS)]} {number}" for number in numbers]
        sounds.append(pipe(prompt=prompts, generator=seeded(numbers), **kwargs).audios)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.concatenate(sounds), time.perf_counter() - start, time.process_time() - used


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16], help="batch sizes")
    parser.add_argument("--count", type=int, default=16, help="prompts per round")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=7.0, help="guidance scale")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--model", metavar="FOLDER", help="pipeline to measure (default: the untrained small model)")
    args = parser.parse_args()

    pipe = quiet(AudioXPipeline.from_pretrained(args.model) if args.model else create_small_pipeline())
    pipe.to(find_device())
    kwargs = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}

    alone, *_ = generate(pipe, args.count, 1, **kwargs)
    peak, differences = np.abs(alone).max(), {}
    for size in args.sizes:
        sounds, *_ = generate(pipe, args.count, size, **kwargs)
        differences[size] = np.abs(sounds - alone).max()
    seconds = {size: [] for size in dict.fromkeys([1, *args.sizes])}
    for _ in range(args.rounds):
        for size, times in seconds.items():
            times.append(generate(pipe, args.count, size, **kwargs)[1:])

    print(f"{hardware()}, float32, {args.count} prompts, {args.steps} steps, guidance {args.guidance:g}\n")
    # Elapsed and CPU seconds, the best of each over the rounds.
    best = {size: [min(column) for column in zip(*times, strict=True)] for size, times in seconds.items()}
    print("| batch | prompts per minute | ratio | CPU seconds per prompt | ratio | difference |\n" + "|---" * 6 + "|")
    for size in args.sizes:
        elapsed, used = best[size]
        ratios = [one / own for one, own in zip(best[1], best[size], strict=True)]
        print(
            f"| {size} | {60 * args.count / elapsed:.1f} | {ratios[0]:.2f} | {used / args.count:.2f} | {ratios[1]:.2f}"
            f" | {differences[size] / peak:.0e} |"
        )


if __name__ == "__main__":
    main()
