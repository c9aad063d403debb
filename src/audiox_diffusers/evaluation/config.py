"""Settings of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class EvaluationConfig:
    """
    How to evaluate.

    Attributes:
        metrics: Names in the catalog; `None` for all that the files allow.
        audio_length_in_s: Clips are cut to this before every network; `None` for whole clips.
        cache: Folder of features.
        weights: Folder with the networks' files; `None` to download them.
        reference_statistics: File of mean and covariance that stands for a reference folder.
        batch_size: Sounds embedded at a time.
        device: Where networks run.
        origin: How the files were generated and which arguments were given, for the report.
    """

    cache: Path
    metrics: tuple[str, ...] | None = None
    audio_length_in_s: float | None = None
    weights: Path | None = None
    reference_statistics: Path | None = None
    batch_size: int = 16
    device: torch.device = torch.device("cpu")
    origin: Mapping[str, Any] = field(default_factory=dict)
