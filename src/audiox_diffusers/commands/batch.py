"""`audiox generate --batch`: a sound for each line of a JSONL file."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..cli import one_line
from ..media.files import check_target
from ..pipelines.prompt_files import read_prompt_file
from .loading import check_model, load_pipeline
from .sounds import Request, Settings, make


def run(args: Namespace) -> int:
    """All lines are checked before the model is loaded. What then fails in a line leaves the others alone."""
    for name in ("prompt", "video", "image", "audio", "num"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not go with --batch")
    settings = Settings.from_args(args)
    folder = Path(args.output)
    requests = read_requests(Path(args.batch), folder, args)
    check_model(args.model)
    check_target(folder / "sound" if folder.exists() else folder)
    folder.mkdir(exist_ok=True)

    missing = {number: request for number, request in requests.items() if not request.output.exists()}
    written = failed = 0
    if missing:
        pipe, _ = load_pipeline(args.model, settings.device, settings.dtype)
    for number, request in missing.items():
        pipe.set_progress_bar_config(desc=f"line {number}", leave=False)
        try:
            request.output.parent.mkdir(parents=True, exist_ok=True)
            request.check_files()
            line, seconds = make(pipe, request, settings)
        except (ValueError, OSError) as error:
            print(f"audiox: error: {args.batch}, line {number}: {one_line(error)}", file=sys.stderr)
            failed += 1
        else:
            print(f"{line}; generated in {seconds:.1f} s", flush=True)
            written += 1
    print(f"wrote {written}, skipped {len(requests) - len(missing)}, failed {failed}")
    return 2 if failed else 0


def read_requests(path: Path, folder: Path, args: Namespace) -> dict[int, Request]:
    """
    The request of each line that is not blank, by line number.

    Raises:
        ValueError: naming the line that is wrong.
    """
    requests: dict[int, Request] = {}
    outputs: dict[Path, int] = {}
    for number, values in read_prompt_file(path, output=str).items():
        try:
            request = _request(values, number, folder, args)
            first = outputs.setdefault(request.output.resolve(), number)
            if first != number:
                raise ValueError(f"output {request.output} is that of line {first} too")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        requests[number] = request
    return requests


def _request(values: dict[str, Any], number: int, folder: Path, args: Namespace) -> Request:
    name = values.pop("output", f"{number:05}.wav")
    output = folder / name
    if not output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"output {name} leaves the output folder")
    defaults = {"seed": args.seed + number - 1, "negative_prompt": args.negative_prompt, "length": args.length}
    request = Request(output=output, **{**defaults, **values})
    request.check()
    return request
