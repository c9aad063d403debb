"""`audiox generate --batch`: a sound for each line of a JSONL file."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from ..cli import one_line
from ..media.files import check_target
from .loading import check_model, load_pipeline
from .sounds import Request, Settings, make, write

KEYS = {
    "prompt": str,
    "negative_prompt": str,
    "video": str,
    "image": str,
    "audio": str,
    "seed": int,
    "length": (int, float),
    "output": str,
}


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
        rate = pipe.vae.config.sampling_rate
    for number, request in missing.items():
        pipe.set_progress_bar_config(desc=f"line {number}", leave=False)
        try:
            request.output.parent.mkdir(parents=True, exist_ok=True)
            request.check_files()
            sound, seconds = make(pipe, request, settings)
            line = write(request.output, sound, rate, request.video, settings.normalize)
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
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    requests: dict[int, Request] = {}
    outputs: dict[Path, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = _read_line(line, number, path.parent, folder, args)
            first = outputs.setdefault(request.output.resolve(), number)
            if first != number:
                raise ValueError(f"output {request.output} is that of line {first} too")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        requests[number] = request
    if not requests:
        raise ValueError(f"{path}: has no lines")
    return requests


def _read_line(line: str, number: int, source: Path, folder: Path, args: Namespace) -> Request:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {type(values).__name__}")
    for key, value in values.items():
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}, use {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise ValueError(f"{key} is of the wrong type: {json.dumps(value)}")

    output = folder / values.get("output", f"{number:05}.wav")
    if not output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"output {values['output']} leaves the output folder")
    files = {key: source / values[key] for key in ("video", "image", "audio") if key in values}
    request = Request(
        output=output,
        seed=values.get("seed", args.seed + number - 1),
        prompt=values.get("prompt"),
        negative_prompt=values.get("negative_prompt", args.negative_prompt),
        length=values.get("length", args.length),
        **files,
    )
    request.check()
    return request
