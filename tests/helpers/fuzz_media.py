"""
Read damaged media files of every format, and check that only the documented errors come out.

Every sample is cut off at each 2 % of its length, and has random bytes overwritten in 40 seeded ways. All readers that
take the format read each of these files, in a process with 3 GiB of memory and a time limit for each file. What must not
happen: another exception than `MediaError`, a crash, a hang, or a thread or file descriptor that is left.

    python tests/helpers/fuzz_media.py                    # all formats in full: some minutes
    python tests/helpers/fuzz_media.py --every 15 .mp4    # each 15th damaged file of one format
"""

import argparse
import contextlib
import json
import logging
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from media_samples import PICTURES, SOUNDS, VIDEOS, write_sample

FORMATS = (*SOUNDS, *VIDEOS, *PICTURES)
MEMORY = 3 * 2**30
SECONDS = 20


def damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield `(what was done, damaged content)`: 49 cuts and 40 overwritings with 1 to 64 random bytes."""
    for percent in range(2, 100, 2):
        yield f"cut to {percent} %", content[: len(content) * percent // 100]
    for seed in range(40):
        generator = np.random.default_rng(seed)
        changed = bytearray(content)
        # Headers decide most: half of the damage goes to the first kilobyte.
        reach = len(content) if seed % 2 else min(len(content), 1024)
        for place in generator.integers(0, reach, 2 ** (seed % 7)):
            changed[place] = generator.integers(0, 256)
        yield f"bytes of seed {seed}", bytes(changed)


def readers(suffix: str) -> dict[str, Callable]:
    """Return the public functions that read files of a format."""
    from audiox_diffusers.media import load_audio, load_image, load_video, media_duration, save_video

    def copy(path: Path) -> None:
        save_video(path.with_name("copy.mkv"), path, np.zeros((1, 800), np.float32), 16000)

    found = {"media_duration": media_duration}
    if suffix in PICTURES:
        found["load_image"] = load_image
    if suffix in SOUNDS or (suffix in VIDEOS and VIDEOS[suffix][2]):
        found["load_audio"] = lambda path: load_audio(path, 16000, 1)
    if suffix not in SOUNDS:
        found["load_video"] = lambda path: load_video(path, fps=25, size=(16, 16))
        found["save_video"] = copy
    return found


def work(formats: list[str], first: int, every: int) -> None:
    """Read the damaged files of some formats, from number `first` on; print a line of JSON for each read."""
    logging.disable(logging.WARNING)
    from audiox_diffusers.media import MediaError

    with tempfile.TemporaryDirectory() as folder:
        samples = {suffix: write_sample(Path(folder) / f"sample{suffix}") for suffix in formats}
        for suffix, path in samples.items():
            for function in readers(suffix).values():  # whatever is imported or started once
                with contextlib.suppress(MediaError):  # such as a codec that .mkv cannot hold
                    function(path)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        before, number = open_things(), -1
        for suffix, path in samples.items():
            for index, (damage, changed) in enumerate(damaged(path.read_bytes())):
                number += 1
                if number < first or index % every:
                    continue
                path.write_bytes(changed)
                for name, function in readers(suffix).items():
                    print(json.dumps({"number": number, "case": f"{suffix}, {damage}, {name}"}), flush=True)
                    start, outcome = time.monotonic(), "read"
                    try:
                        function(path)
                    except MediaError:
                        outcome = "MediaError"
                    except BaseException as error:
                        outcome = f"{type(error).__name__}: {error}"
                    seconds, after = time.monotonic() - start, open_things()
                    if after != before:
                        outcome, before = f"{outcome}, (threads, descriptors) {before} -> {after}", after
                    print(json.dumps({"outcome": outcome, "seconds": round(seconds, 3)}), flush=True)
        left = {name for name in os.listdir(folder) if name != "copy.mkv"} - {path.name for path in samples.values()}
        print(
            json.dumps({"left": sorted(left), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True
        )


def open_things() -> tuple[int, int]:
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


@dataclass
class Report:
    """Outcomes of the reads, faults, the longest read in seconds, and the most memory of a process in MiB."""

    outcomes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: float = 0.0


def fuzz(formats: Sequence[str], every: int = 1) -> Report:
    """Read damaged files in a process of their own. A process that crashes or hangs is replaced."""
    report, first = Report(), 0
    while first is not None:
        command = [sys.executable, __file__, *formats, "--work", "--first", str(first), "--every", str(every)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        case, first = None, None
        while True:
            if not select.select([worker.stdout], [], [], 300 if case is None else SECONDS)[0]:
                worker.kill()
                report.faults.append(f"{case}: hangs")
                break
            line = worker.stdout.readline()
            if not line:
                if worker.wait():
                    error = worker.stderr.read().strip().splitlines()
                    report.faults.append(f"{case}: the process ended with {worker.returncode} {error[-1:]}")
                break
            result = json.loads(line)
            if "case" in result:
                case = result
            elif "left" in result:
                report.memory = max(report.memory, result["peak"] / 1024)
                report.faults += [f"left {name}" for name in result["left"]]
                case = None
            else:
                known = result["outcome"] in ("read", "MediaError")
                report.outcomes[result["outcome"] if known else "fault"] += 1
                report.slowest = max(report.slowest, result["seconds"])
                report.faults += [] if known else [f"{case['case']}: {result['outcome']}"]
        worker.wait()
        worker.stdout.close()
        worker.stderr.close()
        if case is not None:
            first = case["number"] + 1
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=FORMATS, help="extensions; all by default")
    parser.add_argument("--every", type=int, default=1, help="read each N-th damaged file only")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.formats, args.first, args.every)
        return 0
    report = fuzz(args.formats, args.every)
    print("".join(f"{fault}\n" for fault in report.faults), end="")
    print(
        f"{sum(report.outcomes.values())} reads of {len(args.formats)} formats: {dict(report.outcomes)},"
        f" {len(report.faults)} faults, longest read {report.slowest:.2f} s, at most {report.memory:.0f} MiB"
    )
    return int(bool(report.faults))


if __name__ == "__main__":
    raise SystemExit(main())
