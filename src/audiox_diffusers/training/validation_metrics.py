"""Metrics of the validation audio, as `audiox evaluate` computes them."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.utils import logging

from ..atomic import replacing
from ..evaluation.catalog import NETWORKS
from ..evaluation.clips import AUDIO_SUFFIXES, VIDEO_SUFFIXES, EvaluationSet, find_files
from ..evaluation.config import EvaluationConfig
from ..evaluation.metrics import METRICS
from ..evaluation.run import OneProcess, choose_metrics, run_evaluation
from ..messages import first_line
from .arguments import TrainingArguments
from .run.log import warned

logger = logging.get_logger(__name__)

FOLDER, FILE = "validation", "metrics.json"
# Options of `audiox evaluate`, and what gives the same in training.
OPTIONS = {
    "--metrics": "--validation_metrics",
    "--reference": "--validation_reference",
    "--captions": "prompts in --validation_prompts",
    "--videos": "videos in --validation_prompts",
}


class ValidationMetrics:
    """
    Measure the audio of each validation with `--validation_metrics`.

    Args:
        args: Options of the run.
        requests: Lines of `--validation_prompts`, by number.

    Raises:
        ValueError: A metric is unknown, needs files that are missing, or its network cannot be loaded.
    """

    def __init__(self, args: TrainingArguments, requests: dict[int, dict[str, Any]]):
        names = {number: f"{number:03}" for number in requests}
        reference = args.validation_reference
        self.reference = {}
        if reference is not None:
            self.reference = find_files("--validation_reference", reference, AUDIO_SUFFIXES | VIDEO_SUFFIXES)
        self.captions = {names[number]: line["prompt"] for number, line in requests.items() if line.get("prompt")}
        self.videos = {names[number]: Path(line["video"]) for number, line in requests.items() if line.get("video")}
        self.config = EvaluationConfig(
            cache=args.output_dir / FOLDER / "features", metrics=tuple(args.validation_metrics), batch_size=8
        )
        expected = EvaluationSet({name: Path() for name in names.values()}, self.reference, self.captions, self.videos)
        try:
            choose_metrics(expected, self.config)
            for network in {METRICS[name].network for name in args.validation_metrics}:
                NETWORKS[network].load(None, torch.device("cpu"))
        except (ValueError, OSError) as error:
            reason = str(error)
            for option, here in OPTIONS.items():
                reason = reason.replace(option, here)
            if not reason.startswith("--validation_metrics"):
                reason = f"--validation_metrics {' '.join(args.validation_metrics)}: {reason}"
            raise ValueError(reason) from error

    def measure(self, folder: Path, accelerator: Accelerator, step: int) -> dict[str, float]:
        """
        Measure the files in `folder`, write `metrics.json` beside them and log the figures. A failure is a warning.

        Returns:
            The figures by the name of their metric.
        """
        generated = find_files("validation", folder, {".wav"})
        try:
            report = run_evaluation(
                EvaluationSet(generated, self.reference, self.captions, self.videos), self.config, state=OneProcess()
            )
        except (ValueError, OSError) as error:
            logger.warning(f"metrics of the validation at step {step}: {first_line(error)}")
            return {}
        with replacing(folder / FILE) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
        figures = {figure.metric: figure.value for figure in report.figures}
        with warned(f"metrics of the validation at step {step}: the tracker failed"):
            accelerator.log({f"validation/{name}": value for name, value in figures.items()}, step=step)
        return figures


def read_last_metrics(output_dir: Path) -> tuple[int, dict[str, float]] | None:
    """Read the step and the figures of the last validation that has some, `None` without any."""
    steps = {int(path.parent.name.removeprefix("step-")): path for path in output_dir.glob(f"{FOLDER}/step-*/{FILE}")}
    if not steps:
        return None
    report = json.loads(steps[max(steps)].read_text(encoding="utf-8"))
    return max(steps), {figure["metric"]: figure["value"] for figure in report["figures"]}
