"""Onset times, from the detector of the bench."""

import torch

from ...bench.features import preprocess
from ...bench.onsets import detect_onsets
from .base import Sound


class OnsetDetector:
    """Find the onsets of sounds with [`detect_onsets`], which has no weights."""

    def embed(self, sounds: list[Sound]) -> list[dict[str, torch.Tensor]]:
        """Return the `onsets` of each sound in seconds, `[onsets]`, float64."""
        return [
            {"onsets": torch.tensor(detect_onsets(preprocess(waveform.numpy(), rate)), dtype=torch.float64)}
            for waveform, rate in sounds
        ]
