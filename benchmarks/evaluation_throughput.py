"""
Clips a second, memory and resuming of `audiox evaluate` on many short clips.

    python benchmarks/evaluation_throughput.py [--clips 20000] [--processes 2] [--kill-after SECONDS] [--folder FOLDER]

One-second clips of noise run through VGGish with random weights. With --kill-after, all processes of the first run are
killed with SIGKILL after so many seconds, and the run is started again. The last line compares the figures with those
of one process that reads the features from the cache. With --folder, the clips and features are kept, so that the
benchmark itself can be stopped and started again.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import PartialState
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
        print(json.dumps({"fad": figure.value, "error": figure.error, "clips": figure.count}), flush=True)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def start(folder: Path, processes: int) -> subprocess.Popen:
    # On CPUs, `accelerate launch` starts a single process.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [__file__, "--worker", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen) -> None:
    """Kill a process and its children with SIGKILL."""
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.kill()
    process.wait()


def finish(process: subprocess.Popen) -> str:
    """Return what a process prints; kill it if this one is interrupted."""
    try:
        return process.communicate()[0]
    except BaseException:
        kill(process)
        raise


def count(folder: Path) -> int:
    """Return the number of clips that have embeddings, which are the larger of two features."""
    return sum(1 for path in (folder / "cache").rglob("*.safetensors") if path.stat().st_size > 300)


def measure(folder: Path, processes: int, kill_after: float | None) -> None:
    done, started = count(folder), time.perf_counter()
    if kill_after is not None:
        process = start(folder, processes)
        time.sleep(kill_after)
        kill(process)
        print(f"killed after {kill_after:g} s, {count(folder)} clips embedded", flush=True)
    output = finish(start(folder, processes))
    seconds = time.perf_counter() - started
    new = count(folder) - done
    print(f"{new} clips, {processes} processes: {new / seconds:.1f} clips a second; {output.strip()}", flush=True)
    again = finish(start(folder, 1))
    print(f"one process from the cache: {again.strip()}; equal: {again == output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000, help="clips, half of them references (default: 20000)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kill-after", type=float, metavar="SECONDS")
    parser.add_argument("--folder", type=Path, help="folder for clips and features (default: a temporary one)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        rng = np.random.default_rng(0)
        for side in ("generated", "reference"):
            (folder / side).mkdir(parents=True, exist_ok=True)
            for number in range(args.clips // 2):
                sound, path = 0.1 * rng.normal(size=(1, RATE)).astype("f4"), folder / side / f"{number:05}.wav"
                if not path.is_file():
                    save_audio(path, sound, RATE)
        measure(folder, args.processes, args.kill_after)


if __name__ == "__main__":
    main()
