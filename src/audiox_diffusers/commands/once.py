"""A command for one sound, or some that differ in their seeds: check, load, make."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..media.files import check_target
from ..pipelines import AudioXPipeline
from .loading import check_model, load_pipeline
from .sounds import Request, Settings


def read_request(args: Namespace) -> Request:
    """What the options of the command line ask for."""
    return Request(
        output=Path(args.output),
        seed=args.seed,
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        video=_path(args.video),
        image=_path(args.image),
        audio=_path(args.audio),
        length=getattr(args, "length", None),
    )


def run_once(
    args: Namespace,
    request: Request,
    settings: Settings,
    make: Callable[[AudioXPipeline, Request, Settings], tuple[str, float]],
    pipeline_class: type[AudioXPipeline] = AudioXPipeline,
) -> int:
    """Everything is checked before the model is loaded. `make` writes a sound and says so in a line."""
    count = 1 if args.num is None else args.num
    if count < 1:
        raise ValueError(f"--num must be at least 1, got {count}")
    request.check()
    if request.seed + count > 2**64:
        raise ValueError(f"the last seed must be below 2**64, got {request.seed} for the first of {count}")
    outputs = _outputs(request.output, count)
    for output in outputs:
        check_target(output)
    check_model(args.model)
    request.check_files()

    pipe, loading = load_pipeline(args.model, settings.device, settings.dtype, pipeline_class)
    generating = 0.0
    # One at a time rather than as a batch: each sound is the same, to the bit, as when it is made alone.
    for number, output in enumerate(outputs):
        line, seconds = make(pipe, replace(request, seed=request.seed + number, output=output), settings)
        generating += seconds
        if count > 1:
            print(f"{line}; generated in {seconds:.1f} s", flush=True)
    summary = line if count == 1 else f"wrote {count} sounds"
    print(f"{summary}; loaded in {loading:.1f} s, generated in {generating:.1f} s")
    return 0


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _outputs(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]
