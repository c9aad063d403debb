"""
How good the ears of `audiox bench` are: its measures of true sounds, without a model.

`python benchmarks/bench_detectors.py` prints the table for sounds of 4 s at 16 kHz and 12 frames of video a second.
"""

import argparse

from audiox_diffusers.bench import Bench
from audiox_diffusers.bench.detectors import measure_detectors
from audiox_diffusers.bench.report import markdown_table, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampling-rate", type=int, default=16000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    bench = Bench(args.sampling_rate, 1, args.seconds, 12.0, args.seconds, args.count)
    measures = measure_detectors(bench)
    names = list(measures["as rendered"])
    rows = [[kind, *(show(scores[name]) for name in names)] for kind, scores in measures.items()]
    print(markdown_table(["true sounds", *names], rows))


if __name__ == "__main__":
    main()
