"""`audiox edit`."""

from argparse import Namespace
from functools import partial
from typing import Any

from ..generation.sounds import make_edit
from ..pipelines import AudioXInpaintPipeline
from .generate import run_single
from .quiet import quiet_libraries


def run(args: Namespace) -> int:
    """Run `audiox edit` and return the exit code."""
    with quiet_libraries():
        return run_single(args, partial(make_edit, edit=read_edit(args)), AudioXInpaintPipeline)


def read_edit(args: Namespace) -> dict[str, Any]:
    """Return the edits of a command line as arguments of the pipeline."""
    edit = {
        "inpaint_spans": args.inpaint,
        "extend_by_s": args.extend,
        "strength": args.strength,
        "crossfade_ms": args.crossfade,
    }
    return {name: value for name, value in edit.items() if value is not None}
