"""The `audiox` command. Nothing heavy is imported before the arguments are known to be right."""

import os
import sys
from collections.abc import Sequence

from ._imports import exit_quickly, import_without_gc
from .interruption import run_interruptible
from .messages import describe


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`Sequence[str]`, *optional*): Its arguments. Defaults to those of the process.

    Returns:
        `int`: The exit code: 0, 2 after an error, which one line on stderr explains, or 128 plus the number of the
        signal that stopped the command, such as 130 for Ctrl-C.
    """
    exit_quickly()
    return run_interruptible(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    from .commands.parser import parse_args
    from .commands.terminal import error

    try:
        args = parse_args(argv)
        return import_without_gc(f"{__package__}.commands.{args.command.replace('-', '_')}").run(args)
    except Exception as exception:
        if os.environ.get("AUDIOX_TRACEBACK"):
            raise
        error(describe(exception))
        return 2


if __name__ == "__main__":
    sys.exit(main())
