"""
Clips a second, memory and resuming of `audiox evaluate` on many short clips.

    python benchmarks/evaluation_throughput.py [--clips 20000] [--processes 2] [--kill-after SECONDS]

One-second clips of noise run through VGGish with random weights. With --kill-after, the first run is killed after so
many seconds and started again. The last line compares the figures with those of a run in one process from the cache.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from random_networks import use_random_weights

from audiox_diffusers.evaluation.clips import read_set
from audiox_diffusers.evaluation.config import EvaluationConfig
from audiox_diffusers.evaluation.run import run_evaluation
from audiox_diffusers.media import save_audio

RATE = 16_000


def worker(folder: Path) -> None:
    torch.set_num_threads(1)
    use_random_weights("vggish")
    clips = read_set(folder / "generated", folder / "reference")
    report = run_evaluation(clips, EvaluationConfig(cache=folder / "cache", metrics=("fad",), batch_size=32))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB", file=sys.stderr)
    if report is not None:
        figure = report.figures[0]
        print(json.dumps({"fad": figure.value, "error": figure.error, "clips": figure.count}))


def start(folder: Path, processes: int) -> subprocess.Popen:
    # On CPUs, `accelerate launch` starts a single process.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [__file__, "--worker", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000, help="clips, half of them references (default: 20000)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kill-after", type=float, metavar="SECONDS")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for side in ("generated", "reference"):
            (folder / side).mkdir()
            for number in range(args.clips // 2):
                save_audio(folder / side / f"{number:05}.wav", 0.1 * rng.normal(size=(1, RATE)).astype("f4"), RATE)
        started = time.perf_counter()
        if args.kill_after is not None:
            process = start(folder, args.processes)
            time.sleep(args.kill_after)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done = sum(1 for _ in (folder / "cache").rglob("*.safetensors"))
            print(f"killed after {args.kill_after:g} s, {done} features on disk", flush=True)
        output, _ = start(folder, args.processes).communicate()
        seconds = time.perf_counter() - started
        print(
            f"{args.clips} clips, {args.processes} processes: {args.clips / seconds:.1f} clips a second; {output.strip()}"
        )
        again, _ = start(folder, 1).communicate()
        print(f"one process from the cache: {again.strip()}; equal: {again == output}")


if __name__ == "__main__":
    main()
