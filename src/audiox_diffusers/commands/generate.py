"""`audiox generate`."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from ..media.files import check_target
from . import batch
from .loading import check_model, load_pipeline
from .quiet import quiet_libraries
from .sounds import Request, Settings, make, write


def run(args: Namespace) -> int:
    with quiet_libraries():
        return _run_once(args) if args.batch is None else batch.run(args)


def _run_once(args: Namespace) -> int:
    settings = Settings.from_args(args)
    count = 1 if args.num is None else args.num
    if count < 1:
        raise ValueError(f"--num must be at least 1, got {count}")
    request = Request(
        output=Path(args.output),
        seed=args.seed,
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        video=_path(args.video),
        image=_path(args.image),
        audio=_path(args.audio),
        length=args.length,
    )
    request.check()
    if request.seed + count > 2**64:
        raise ValueError(f"the last seed must be below 2**64, got {request.seed} for the first of {count}")
    outputs = _outputs(request.output, count)
    for output in outputs:
        check_target(output)
    check_model(args.model)
    request.check_files()

    pipe, loading = load_pipeline(args.model, settings.device, settings.dtype)
    rate = pipe.vae.config.sampling_rate
    generating = 0.0
    # One at a time rather than as a batch: each sound is the same, to the bit, as when it is made alone.
    for number, output in enumerate(outputs):
        sound, seconds = make(pipe, replace(request, seed=request.seed + number), settings)
        generating += seconds
        line = write(output, sound, rate, request.video, settings.normalize)
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
