"""`audiox generate`, and code shared with `audiox edit`."""

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from ..atomic import scratch
from ..generation.loading import check_model, load_pipeline
from ..generation.request import STDOUT, Request, read_request
from ..generation.sounds import Settings, check_files, make
from ..pipelines import AudioXPipeline
from . import batch
from .checks import numbered
from .quiet import quiet_libraries
from .terminal import say
from .vocabulary import note_unknown_words

Make = Callable[[AudioXPipeline, Request, Settings], tuple[str, float]]


def run(args: Namespace) -> int:
    """Run `audiox generate` and return the exit code."""
    with quiet_libraries():
        return batch.run(args) if args.batch is not None else run_single(args, make)


def run_single(args: Namespace, make: Make, pipeline_class: type[AudioXPipeline] = AudioXPipeline) -> int:
    """
    Generate one sound, or `--num` sounds.

    Args:
        args (`Namespace`): Arguments of the command.
        make (`Callable`): Generates and writes one sound; returns a line about it, and the seconds it took.
        pipeline_class (`type`): Pipeline to load.

    Returns:
        `int`: The exit code.
    """
    request = read_request(args)
    if request.output != STDOUT:
        return _run(args, request, make, pipeline_class)
    with scratch(Path(gettempdir()) / "sound.wav") as file:
        with redirect_stdout(sys.stderr):
            code = _run(args, replace(request, output=file), make, pipeline_class)
        with file.open("rb") as sound:
            shutil.copyfileobj(sound, sys.stdout.buffer)
        sys.stdout.flush()
    return code


def _run(args: Namespace, request: Request, make: Make, pipeline_class: type[AudioXPipeline]) -> int:
    settings = Settings.from_args(args)
    check_model(args.model)
    check_files(request)
    note_unknown_words(args.model, [request.prompt])

    pipe, loading = load_pipeline(args.model, settings.placement, pipeline_class)
    outputs = numbered(request.output, args.num or 1)
    generating = 0.0
    # One at a time rather than as a batch: each sound is then the same, to the bit, as when it is generated alone.
    for number, output in enumerate(outputs):
        line, seconds = make(pipe, replace(request, seed=request.seed + number, output=output), settings)
        generating += seconds
        if len(outputs) > 1:
            say(f"{line}; generated in {seconds:.1f} s")
    summary = line if len(outputs) == 1 else f"wrote {len(outputs)} sounds"
    say(f"{summary}; loaded in {loading:.1f} s, generated in {generating:.1f} s")
    return 0
