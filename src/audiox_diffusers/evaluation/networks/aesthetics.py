"""Audiobox Aesthetics (Tjandra et al., arXiv 2502.05139), through its package: quality without a reference."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchaudio.functional import resample

from .base import Sound

AXES = ("PQ", "PC", "CE", "CU")


class Aesthetics(nn.Module):
    """
    Scores of production quality, production complexity, content enjoyment and content usefulness, from 1 to 10.

    Args:
        model: `AesMultiOutput` of the package. It runs in float32, so that scores are repeatable.
    """

    sampling_rate = 16_000
    window = 10 * sampling_rate

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.model.enable_autocast = False

    @torch.inference_mode()
    def embed(self, sounds: list[Sound]) -> list[dict[str, torch.Tensor]]:
        """Compute `scores` `[4]` of each sound, in the order of `AXES`: means over windows of 10 s, by length."""
        return [{"scores": self._scores(*sound)} for sound in sounds]

    def _scores(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        mono = resample(waveform, sampling_rate, self.sampling_rate).mean(dim=0)
        windows = mono.split(self.window)
        lengths = torch.tensor([len(window) for window in windows])
        batch = torch.stack([F.pad(window, (0, self.window - len(window))) for window in windows])[:, None]
        mask = (torch.arange(self.window) < lengths[:, None])[:, None]
        device = next(self.parameters()).device
        predicted = self.model({"wav": batch.to(device), "mask": mask.to(device)})
        weights = lengths / lengths.sum()
        scores = []
        for axis in AXES:
            transform = self.model.target_transform[axis]
            scores.append((predicted[axis].cpu() * transform["std"] + transform["mean"]) @ weights)
        return torch.stack(scores)
