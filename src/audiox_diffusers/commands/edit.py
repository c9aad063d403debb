"""`audiox edit`."""

import math
import re
import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch

from ..pipelines import AudioXInpaintPipeline
from .once import read_request, run_once
from .quiet import quiet_libraries
from .sounds import Request, Settings, write


def run(args: Namespace) -> int:
    """`audiox edit`; the exit status."""
    with quiet_libraries():
        make = partial(make_edit, edit=read_edit(args))
        return run_once(args, read_request(args), Settings.from_args(args), make, AudioXInpaintPipeline)


def read_edit(args: Namespace) -> dict[str, Any]:
    """What to do to the sound, as arguments of the pipeline; `ValueError` names the option that is out of range."""
    if args.inpaint is None and args.extend is None and args.strength is None:
        raise ValueError("nothing to do: give --inpaint, --extend or --strength")
    if args.extend is not None and (args.inpaint is not None or args.strength is not None):
        raise ValueError("--extend does not go with --inpaint or --strength")
    if args.extend is not None and not (math.isfinite(args.extend) and args.extend):
        raise ValueError(f"--extend must be a number of seconds other than 0, got {args.extend:g}")
    if args.strength is not None and not 0 < args.strength <= 1:
        raise ValueError(f"--strength must be above 0 and at most 1, got {args.strength:g}")
    if args.crossfade is not None and not 0 <= args.crossfade < math.inf:
        raise ValueError(f"--crossfade must be 0 ms or more, got {args.crossfade:g}")
    edit = {
        "inpaint_spans": None if args.inpaint is None else [_span(span) for span in args.inpaint],
        "extend_by_s": args.extend,
        "strength": args.strength,
        "crossfade_ms": args.crossfade,
    }
    return {name: value for name, value in edit.items() if value is not None}


def _span(text: str) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+\.?\d*)-(\d+\.?\d*)", text)
    if match is None or float(match[2]) <= float(match[1]):
        raise ValueError(f"--inpaint {text}: must be START-END in seconds, such as 2.5-7.5")
    return float(match[1]), float(match[2])


def make_edit(
    pipe: AudioXInpaintPipeline, request: Request, settings: Settings, edit: dict[str, Any]
) -> tuple[str, float]:
    """Edit a sound and write the result; what was written, in a line, and the seconds that took."""
    start = time.perf_counter()
    pieces = pipe(
        audio=request.audio,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        video=request.video,
        image=request.image,
        generator=[torch.Generator().manual_seed(request.seed)],
        output_type="stream",
        **edit,
        **settings.options(),
    ).audios
    line = write(request.output, (piece[0] for piece in pieces), pipe.vae.config.sampling_rate, request.video)
    return line, time.perf_counter() - start
