"""Memory of a process on Linux, as `/proc` tells it."""

from pathlib import Path


def process_gigabytes(field: str) -> float:
    """Such as `VmRSS`, resident memory, and `VmHWM`, its peak; unlike that of `resource`, not inherited."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e9
