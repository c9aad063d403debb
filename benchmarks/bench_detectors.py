"""
Measure the accuracy of the metrics of `audiox bench` on true sounds, without a model:

    python benchmarks/bench_detectors.py
"""

from common import create_parser

from audiox_diffusers.bench import Bench
from audiox_diffusers.bench.detectors import measure_detectors
from audiox_diffusers.bench.report import show
from audiox_diffusers.tables import markdown_table


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--sampling-rate", type=int, default=16000, help="in Hz (default: 16000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the scenes (default: 4)")
    parser.add_argument("--count", type=int, default=40, help="number of scenes (default: 40)")
    args = parser.parse_args()
    bench = Bench(args.sampling_rate, 1, args.seconds, 12.0, args.seconds, args.count)
    accuracies = measure_detectors(bench)
    names = list(accuracies["as rendered"])
    rows = [[kind, *(show(scores[name]) for name in names)] for kind, scores in accuracies.items()]
    print(markdown_table(["true sounds", *names], rows))


if __name__ == "__main__":
    main()
