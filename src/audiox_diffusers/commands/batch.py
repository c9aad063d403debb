"""`audiox generate --batch`: one sound per line of a JSONL file, in one process or several."""

import logging
import os
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..atomic import check_target
from ..generation.guidance import Guidance
from ..generation.loading import check_model, load_pipeline
from ..generation.request import Request
from ..generation.sounds import Settings, check_files, finish, length_in_s, sample
from ..messages import describe
from ..pipelines import AudioXPipeline
from ..pipelines.prompt_files import read_lines
from .processes import connected_processes
from .terminal import error, say
from .vocabulary import note_unknown_words


def run(args: Namespace) -> int:
    """
    Run `audiox generate --batch` and return the exit code.

    All lines are checked before the model is loaded. A line that is wrong or fails leaves the others alone. Several
    processes, as `accelerate launch` starts them, share the lines; each has a GPU of its own.
    """
    with connected_processes() as state:
        if torch.cuda.is_available():
            torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())
        if not state.is_main_process:
            logging.getLogger("audiox_diffusers").setLevel(logging.ERROR)
        return _run(args, state)


def _run(args: Namespace, state: PartialState) -> int:
    settings = Settings.from_args(args)
    folder = Path(args.output)
    check_model(args.model)

    requests, failed = {}, 0
    for number, outcome in read_requests(args.batch, folder, args).items():
        if isinstance(outcome, Request):
            requests[number] = outcome
        elif state.is_main_process:
            _print_error(args, number, outcome)
            failed += 1
    # Only one process looks for existing files: another that looks later would find files that the first has written.
    missing = [number for number, request in requests.items() if not request.output.is_file()]
    (missing,) = broadcast_object_list([missing])
    share = {number: requests[number] for number in missing[state.process_index :: state.num_processes]}
    written = 0
    if share:
        folder.mkdir(exist_ok=True)
        if state.is_main_process:
            note_unknown_words(args.model, [requests[number].prompt for number in missing])
        pipe, _ = load_pipeline(args.model, settings.placement)
        for number, outcome in make_all(pipe, share, settings, args.batch_size or 1):
            if isinstance(outcome, Exception):
                _print_error(args, number, outcome)
                failed += 1
            else:
                written += 1
                if state.is_main_process:
                    say(outcome)

    # The launcher ends all processes when one fails, so none may end before the others are done.
    written, failed = map(sum, zip(*gather_object([(written, failed)]), strict=True))
    if state.is_main_process:
        say(f"wrote {written}, skipped {len(requests) - len(missing)}, failed {failed}")
    return 2 if failed else 0


def _print_error(args: Namespace, number: int, exception: Exception) -> None:
    error(f"{args.batch}, line {number}: {describe(exception)}")


def make_all(
    pipe: AudioXPipeline, requests: dict[int, Request], settings: Settings, batch_size: int
) -> Iterator[tuple[int, str | Exception]]:
    """
    Generate and write the sounds, up to `batch_size` at once.

    Sounds of a batch have the same length and the same kinds of negative prompts.

    Yields:
        `tuple`: Line number, and a line about what was written or the exception that prevented it.
    """
    waiting: dict[tuple[float, tuple[str, ...]], dict[int, Request]] = defaultdict(dict)
    for number, request in requests.items():
        try:
            request.output.parent.mkdir(parents=True, exist_ok=True)
            check_files(request)
            length = length_in_s(pipe, request)
        except Exception as exception:
            yield number, exception
            continue
        kind = length, tuple(request.negatives)
        waiting[kind][number] = request
        if len(waiting[kind]) == batch_size:
            yield from make_batch(pipe, waiting.pop(kind), length, settings)
    for (length, _), batch in waiting.items():
        yield from make_batch(pipe, batch, length, settings)


def make_batch(
    pipe: AudioXPipeline, requests: dict[int, Request], length: float, settings: Settings
) -> Iterator[tuple[int, str | Exception]]:
    """Generate and write lines in one batch, and yield as `make_all`. If the batch fails, each line is tried alone."""
    start = time.perf_counter()
    first, *others = requests
    name = f"line {first} and {len(others)} more" if others else f"line {first}"
    pipe.set_progress_bar_config(desc=name, leave=False)
    try:
        latents = sample(pipe, list(requests.values()), length, settings)
    except Exception as exception:
        if not others:
            yield first, exception
        else:
            for number, request in requests.items():
                yield from make_batch(pipe, {number: request}, length, settings)
        return
    sampling = (time.perf_counter() - start) / len(requests)

    for (number, request), own in zip(requests.items(), latents.split(1), strict=True):
        start = time.perf_counter()
        try:
            line = finish(pipe, request, own, length, settings)
        except Exception as exception:
            yield number, exception
        else:
            yield number, f"{line}; generated in {sampling + time.perf_counter() - start:.1f} s"


def read_requests(file: str, folder: Path, args: Namespace) -> dict[int, Request | Exception]:
    """Return the request of each line that is not blank, or the error in it, by line number."""
    requests: dict[int, Request | Exception] = {}
    outputs: dict[str, int] = {}
    for number, values in read_lines(file, output=str, negative_video=str, negative_audio=str).items():
        if not isinstance(values, Exception):
            try:
                values = _request(values, number, folder, args)
                first = outputs.setdefault(os.path.realpath(values.output), number)
                if first != number:
                    raise ValueError(f"output {values.output} is already the output of line {first}")
            except (ValueError, OSError) as exception:
                values = exception
        requests[number] = values
    return requests


def _request(values: dict[str, Any], number: int, folder: Path, args: Namespace) -> Request:
    name = values.pop("output", f"{number:05}.wav")
    output = folder / name
    # Unlike `Path.resolve`, this accepts a loop of links.
    if not Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"output {name} leaves the output folder")
    defaults = {"seed": args.seed + number - 1, "negative_prompt": args.negative_prompt, "length": args.length}
    for name in ("negative_video", "negative_audio"):
        defaults[name] = None if getattr(args, name) is None else Path(getattr(args, name))
    request = Request(output=output, **{**defaults, **values})
    request.check()
    Guidance.from_args(args).check_negatives(request)
    # Missing folders are created later.
    existing = next(parent for parent in output.parents if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: not a folder")
    if existing == output.parent:
        check_target(output)
    return request
