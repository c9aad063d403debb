"""All that commands print, one line each, safe for the terminal."""

import sys
from typing import TextIO

from ..messages import one_line

# Characters of a line. File names and prompts in messages can be long.
LONGEST = 2000


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
    line, encoding = one_line(line), stream.encoding or "utf-8"
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}... ({len(line)} characters)"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
