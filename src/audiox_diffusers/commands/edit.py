"""`audiox edit`."""

import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch

from ..pipelines import AudioXInpaintPipeline
from .generate import run_single
from .quiet import quiet_libraries
from .request import Request
from .sounds import Settings, write


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


def make_edit(
    pipe: AudioXInpaintPipeline, request: Request, settings: Settings, edit: dict[str, Any]
) -> tuple[str, float]:
    """Edit a sound and write the result; return a line about it, and the seconds it took."""
    start = time.perf_counter()
    pieces = pipe(
        **request.conditions(),
        generator=[torch.Generator().manual_seed(request.seed)],
        output_type="stream",
        **edit,
        **settings.options(pipe, [request]),
    ).audios
    recipe = settings.recipe(pipe, request, edit=edit)
    line = write(request, (piece[0] for piece in pieces), pipe.vae.config.sampling_rate, recipe)
    return line, time.perf_counter() - start
