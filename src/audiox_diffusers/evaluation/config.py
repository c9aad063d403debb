"""Settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class EvaluationConfig:
    """
    How to evaluate.

    Attributes:
        metrics: Names in the catalog; `None` for all that the files allow.
        audio_length_in_s: Sounds are cut to this before every network; `None` for whole files.
        cache: Folder of features.
        weights: Folder with the networks' files; `None` to download them.
        reference_statistics: File of mean and covariance that stands for a reference folder.
        batch_size: Sounds embedded at a time.
        device: Where networks run.
    """

    cache: Path
    metrics: tuple[str, ...] | None = None
    audio_length_in_s: float | None = None
    weights: Path | None = None
    reference_statistics: Path | None = None
    batch_size: int = 16
    device: torch.device = torch.device("cpu")
