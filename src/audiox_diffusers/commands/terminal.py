"""Output of the commands: one line each, safe for the terminal."""

import sys
from typing import TextIO

from ..messages import one_line

# Characters of a line. File names and prompts in messages can be long.
LONGEST = 2000


def say(line: str) -> None:
    """Print a line on stdout."""
    _print(line, sys.stdout)


def show(text: str) -> None:
    """Print lines to copy on stdout, with their indentation and at full length."""
    for line in text.splitlines():
        _print(line, sys.stdout, longest=None, indent=len(line) - len(line.lstrip(" ")))


def log(line: str) -> None:
    """Print a line on stderr."""
    _print(line, sys.stderr)


def note(message: str) -> None:
    """Print a hint on stderr."""
    log(f"audiox: note: {message}")


def error(message: str) -> None:
    """Print an error on stderr."""
    log(f"audiox: error: {message}")


def _print(line: str, stream: TextIO, longest: int | None = LONGEST, indent: int = 0) -> None:
    line, encoding = one_line(line), stream.encoding or "utf-8"
    if longest is not None and len(line) > longest:
        line = f"{line[:longest]}... ({len(line)} characters)"
    print(" " * indent + line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
