"""Functions that benchmarks share."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from audiox_diffusers import AudioXPipeline


def create_parser(doc: str) -> argparse.ArgumentParser:
    """Create a parser that prints a module's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def find_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def quiet(pipe: AudioXPipeline) -> AudioXPipeline:
    """Turn off the progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def process_gigabytes(field: str) -> float:
    """Return a field of `/proc/self/status`: `VmRSS` for resident memory, `VmHWM` for its peak (Linux only)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e9


def run_process(*arguments: object) -> list[float]:
    """Run this benchmark in a new process, for its memory, and return the numbers in the last line that it prints."""
    output = subprocess.check_output([sys.executable, sys.argv[0], *map(str, arguments)], text=True)
    return [float(number) for number in output.splitlines()[-1].split()]
