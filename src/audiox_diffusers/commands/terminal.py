"""All that commands print, one line each, safe for the terminal."""

import sys
from typing import TextIO

from ..messages import one_line


def say(line: str) -> None:
    """Print a line on stdout."""
    _print(line, sys.stdout)


def log(line: str) -> None:
    """Print a line on stderr."""
    _print(line, sys.stderr)


def note(message: str) -> None:
    """Print a hint on stderr."""
    log(f"audiox: note: {message}")


def error(message: str) -> None:
    """Print an error on stderr."""
    log(f"audiox: error: {message}")


def _print(line: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    print(one_line(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
