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
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
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


def work(suffix: str, first: int, every: int) -> None:
    """Read the damaged files of a format from number `first` on; print a line of JSON for each read."""
    logging.disable(logging.WARNING)
    from audiox_diffusers.media import MediaError

    with tempfile.TemporaryDirectory() as folder:
        path = write_sample(Path(folder) / f"sample{suffix}")
        content, functions = path.read_bytes(), readers(suffix)
        for function in functions.values():  # whatever is imported or started once
            with contextlib.suppress(MediaError):  # such as a codec that .mkv cannot hold
                function(path)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        before = open_things()
        for number, (damage, changed) in enumerate(damaged(content)):
            if number < first or number % every:
                continue
            path.write_bytes(changed)
            for name, function in functions.items():
                start, outcome = time.monotonic(), "read"
                print(json.dumps({"number": number, "damage": damage, "reader": name}), flush=True)
                try:
                    function(path)
                except MediaError:
                    outcome = "MediaError"
                except BaseException as error:
                    outcome = f"{type(error).__name__}: {error}"
                    error.__traceback__ = None
                seconds, after = time.monotonic() - start, open_things()
                if after != before:
                    outcome += f", (threads, descriptors) {before} -> {after}"
                print(json.dumps({"outcome": outcome, "seconds": round(seconds, 3)}), flush=True)
        path.unlink()
        left = [name for name in os.listdir(folder) if name != "copy.mkv"]
        print(
            json.dumps({"left": left, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True
        )


def open_things() -> tuple[int, int]:
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def fuzz(suffix: str, every: int = 1) -> tuple[Counter, list[str], float, int]:
    """Return counts of the outcomes, the faults, the longest read in seconds, and the most memory in bytes."""
    outcomes, faults, slowest, memory, first = Counter(), [], 0.0, 0, 0
    while first is not None:
        command = [sys.executable, __file__, "--work", suffix, "--first", str(first), "--every", str(every)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        case, first = {"number": -1}, None
        while True:
            limit = SECONDS if "reader" in case else 120
            if not select.select([worker.stdout], [], [], limit)[0]:
                worker.kill()
                faults.append(f"{suffix} {case}: hangs")
                first = case["number"] + 1
                break
            line = worker.stdout.readline()
            if not line:
                worker.wait()
                if worker.returncode:
                    error = worker.stderr.read().strip().splitlines()
                    end = signal.Signals(-worker.returncode).name if worker.returncode < 0 else error[-1:]
                    faults.append(f"{suffix} {case}: the process ended with {end}")
                    first = case["number"] + 1 if case["number"] >= 0 else None
                break
            result = json.loads(line)
            if "number" in result:
                case = result
            elif "left" in result:
                memory = max(memory, result["peak"])
                faults += [f"{suffix}: left {name}" for name in result["left"]]
            else:
                outcomes[result["outcome"] if result["outcome"] in ("read", "MediaError") else "fault"] += 1
                slowest = max(slowest, result["seconds"])
                if result["outcome"] not in ("read", "MediaError"):
                    faults.append(f"{suffix} {case}: {result['outcome']}")
    return outcomes, faults, slowest, memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=FORMATS, help="extensions; all by default")
    parser.add_argument("--every", type=int, default=1, help="read each N-th damaged file only")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.first, args.every)
        return 0
    total, faults = Counter(), []
    for suffix in args.formats:
        outcomes, found, slowest, memory = fuzz(suffix, args.every)
        total += outcomes
        faults += found
        print(f"{suffix:6} {dict(outcomes)}, longest {slowest:.2f} s, at most {memory / 2**20:.0f} MiB", flush=True)
        print("".join(f"    {fault}\n" for fault in found), end="", flush=True)
    print(f"{sum(total.values())} reads of {len(args.formats)} formats: {dict(total)}, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
