"""`audiox evaluate`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import constants
from tqdm import tqdm

from ..atomic import replacing
from ..evaluation.clips import read_set
from ..evaluation.config import EvaluationConfig
from ..evaluation.run import run_evaluation
from ..generation.loading import read_placement
from . import evaluate_set
from .processes import connected_processes
from .quiet import quiet_libraries
from .terminal import error, say


def run(args: Namespace) -> int:
    """Run `audiox evaluate` and return the exit code."""
    with connected_processes() as state:
        with quiet_libraries():
            code = _run(args)
        # The launcher ends all processes when one ends, so none may end before the first has written its report.
        state.wait_for_everyone()
        return code


def _run(args: Namespace) -> int:
    requests = None
    if args.set is not None:
        requests = evaluate_set.generate(args)
        if requests is None:
            if PartialState().is_main_process:
                error(f"--set {args.set}: nothing was evaluated, because lines failed")
            return 2
    statistics = args.reference is not None and args.reference.endswith(".npz")
    clips = read_set(
        Path(args.generated), None if statistics else _path(args.reference), _path(args.captions), _path(args.videos)
    )
    given = {name: value for name, value in vars(args).items() if value is not None and not callable(value)}
    origin: dict[str, Any] = {"arguments": given}
    if requests is not None:
        clips = evaluate_set.restrict(clips, requests)
        origin["recipes"] = evaluate_set.recipes(clips)
        clips = evaluate_set.note_recipes(clips, origin["recipes"])
    config = EvaluationConfig(
        cache=_path(args.cache) or Path(constants.HF_HOME) / "audiox-evaluate" / "features",
        metrics=args.metrics,
        audio_length_in_s=args.audio_length,
        weights=_path(args.weights),
        reference_statistics=_path(args.reference) if statistics else None,
        batch_size=args.batch_size,
        device=_device(args),
        origin=origin,
    )
    with _Progress() as progress:
        report = run_evaluation(clips, config, progress, _path(args.save_statistics))
    if report is None:
        return 0
    for line in report.table().split("\n"):
        say(line)
    if report.saved:
        counts = ", ".join(f"{network} ({count} embeddings)" for network, count in report.saved.items())
        say(f"wrote {args.save_statistics}: {counts}")
    if args.output is not None:
        with replacing(Path(args.output)) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
        say(f"wrote {args.output}")
    if report.figures or report.saved:
        return 0
    error("no metric could run")
    return 2


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _device(args: Namespace) -> torch.device:
    """Return `--device`. By default each process has its own GPU. `mps` is not chosen, so that figures are comparable."""
    if args.device is None and not torch.cuda.is_available():
        return torch.device("cpu")
    device = read_placement(args).device
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", PartialState().local_process_index % torch.cuda.device_count())
    return device


class _Progress:
    """A progress bar for each network, in the first process of a machine."""

    def __init__(self):
        self.name, self.bar = None, None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, name: str, done: int, total: int) -> None:
        if name != self.name:
            self.__exit__()
            self.name = name
            hidden = not PartialState().is_local_main_process
            self.bar = tqdm(total=total, desc=name, unit="file", leave=False, disable=hidden)
        self.bar.update(done - self.bar.n)
