"""`audiox evaluate`."""

from argparse import Namespace
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub import constants
from tqdm import tqdm

from ..atomic import replacing
from ..evaluation.clips import EvaluationSet, captions_of_prompts, read_set
from ..evaluation.config import EvaluationConfig
from ..evaluation.run import run_evaluation
from . import batch
from .loading import read_placement
from .parser import parse_args
from .quiet import quiet_libraries
from .terminal import say


def run(args: Namespace) -> int:
    """Run `audiox evaluate` and return the exit code."""
    with quiet_libraries():
        if args.set is not None and batch.run(_generate_args(args)):
            return 2
        statistics = args.reference is not None and args.reference.endswith(".npz")
        clips = read_set(
            Path(args.generated),
            None if statistics else _path(args.reference),
            _path(args.captions),
            _path(args.videos),
        )
        if args.set is not None and args.captions is None:
            clips = EvaluationSet(clips.generated, clips.reference, captions_of_prompts(Path(args.set)), clips.videos)
        config = EvaluationConfig(
            cache=_path(args.cache) or Path(constants.HF_HOME) / "audiox-evaluate" / "features",
            metrics=args.metrics,
            audio_length_in_s=args.audio_length,
            weights=_path(args.weights),
            reference_statistics=_path(args.reference) if statistics else None,
            batch_size=args.batch_size,
            device=_device(args),
        )
        report = run_evaluation(clips, config, _Progress(), _path(args.save_statistics))
    if report is None:
        return 0
    for line in report.table().split("\n"):
        say(line)
    if args.output is not None:
        with replacing(Path(args.output)) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
        say(f"wrote {args.output}")
    return 0 if report.figures else 2


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _generate_args(args: Namespace) -> Namespace:
    """Return the arguments of `audiox generate --batch` for the set."""
    values = {"model": args.model, "batch": args.set, "output": args.generated, "seed": args.seed}
    values |= {"steps": args.steps, "guidance": args.guidance, "device": args.device, "batch-size": args.batch_size}
    options = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return parse_args(["generate", *options])


def _device(args: Namespace) -> torch.device:
    """Return `--device`. By default each process has its own GPU."""
    device, _ = read_placement(args)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", PartialState().local_process_index % torch.cuda.device_count())
    return device


class _Progress:
    """A progress bar for each network."""

    def __init__(self):
        self.name, self.bar = None, None

    def __call__(self, name: str, done: int, total: int) -> None:
        if name != self.name:
            self.name = name
            self.bar = tqdm(total=total, desc=name, leave=False, disable=not PartialState().is_local_main_process)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
