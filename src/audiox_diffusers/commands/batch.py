"""`audiox generate --batch`: a sound for each line of a JSONL file, in one process or spread over several."""

import logging
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..cli import one_line
from ..media.files import check_target
from ..pipelines import AudioXPipeline
from ..pipelines.prompt_files import read_prompt_file
from .loading import check_model, load_pipeline
from .sounds import Request, Settings, finish, length_in_s, sample


def run(args: Namespace) -> int:
    """
    All lines are checked before the model is loaded. What then fails in a line leaves the others alone. Of several
    processes, as `accelerate launch` starts them, each makes its share of the lines on a GPU of its own.
    """
    for name in ("prompt", "video", "image", "audio", "num"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not go with --batch")
    batch_size = 1 if args.batch_size is None else args.batch_size
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    state, group = start_process()
    settings = Settings.from_args(args)
    folder = Path(args.output)
    requests = read_requests(Path(args.batch), folder, args)
    check_model(args.model)
    check_target(folder / "sound" if folder.exists() else folder)
    folder.mkdir(exist_ok=True)

    # As one process sees it: another that looks later would find files that the first has made since.
    missing = [number for number, request in requests.items() if not request.output.exists()]
    (missing,) = broadcast_object_list([missing])
    share = {number: requests[number] for number in missing[state.process_index :: state.num_processes]}
    written = failed = 0
    if share:
        pipe, _ = load_pipeline(args.model, settings.device, settings.dtype)
        for number, outcome in make_all(pipe, share, settings, batch_size):
            if isinstance(outcome, Exception):
                print(f"audiox: error: {args.batch}, line {number}: {one_line(outcome)}", file=sys.stderr, flush=True)
                failed += 1
            else:
                written += 1
                if state.is_main_process:
                    print(outcome, flush=True)

    # The launcher ends all processes when one fails: none may be done before the others are.
    written, failed = sum_over_processes((written, failed), group)
    if state.is_main_process:
        print(f"wrote {written}, skipped {len(requests) - len(missing)}, failed {failed}")
    return 2 if failed else 0


def start_process() -> tuple[PartialState, torch.distributed.ProcessGroup | None]:
    """Which process this is, of how many, and their group for the end, or `None` for one. They talk over the CPU."""
    state = PartialState(cpu=True)
    if torch.cuda.is_available():
        torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())
    if not state.is_main_process:
        logging.getLogger("audiox_diffusers").setLevel(logging.ERROR)
    if state.num_processes == 1:
        return state, None
    # Shares take differently long: at the end there is no limit to how long the slowest one is waited for.
    return state, torch.distributed.new_group(timeout=timedelta(days=365))


def sum_over_processes(counts: tuple[int, ...], group: torch.distributed.ProcessGroup | None) -> tuple[int, ...]:
    """The counts of all processes, added up; each waits until all have theirs."""
    if group is None:
        return counts
    gathered: list = [None] * group.size()
    torch.distributed.all_gather_object(gathered, counts, group)
    return tuple(map(sum, zip(*gathered, strict=True)))


def make_all(
    pipe: AudioXPipeline, requests: dict[int, Request], settings: Settings, batch_size: int
) -> Iterator[tuple[int, str | Exception]]:
    """
    Make the sounds and write them, up to `batch_size` at a time that are as long as each other, and all with a
    negative prompt or all without. Gives for each line what was written, or why nothing was, as soon as it is done.
    """
    waiting: dict[tuple[float, bool], dict[int, Request]] = defaultdict(dict)
    for number, request in requests.items():
        try:
            request.output.parent.mkdir(parents=True, exist_ok=True)
            request.check_files()
            length = length_in_s(pipe, request)
        except (ValueError, OSError) as error:
            yield number, error
            continue
        kind = length, request.negative_prompt is None
        waiting[kind][number] = request
        if len(waiting[kind]) == batch_size:
            yield from make_batch(pipe, waiting.pop(kind), length, settings)
    for (length, _), batch in waiting.items():
        yield from make_batch(pipe, batch, length, settings)


def make_batch(
    pipe: AudioXPipeline, requests: dict[int, Request], length: float, settings: Settings
) -> Iterator[tuple[int, str | Exception]]:
    """[`make_all`] of lines that are denoised together. If one of them fails, each is tried alone."""
    start = time.perf_counter()
    first, *others = requests
    name = f"line {first} and {len(others)} more" if others else f"line {first}"
    pipe.set_progress_bar_config(desc=name, leave=False)
    try:
        latents = sample(pipe, list(requests.values()), length, settings)
    except (ValueError, OSError) as error:
        if not others:
            yield first, error
        else:
            for number, request in requests.items():
                yield from make_batch(pipe, {number: request}, length, settings)
        return
    sampling = (time.perf_counter() - start) / len(requests)

    for (number, request), own in zip(requests.items(), latents.split(1), strict=True):
        start = time.perf_counter()
        try:
            line = finish(pipe, request, own, length, settings)
        except (ValueError, OSError) as error:
            yield number, error
        else:
            yield number, f"{line}; generated in {sampling + time.perf_counter() - start:.1f} s"


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
