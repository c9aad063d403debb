"""Base class of the networks that metrics use."""

from abc import ABC, abstractmethod
from collections import defaultdict

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..frontends import prepare

# A waveform, float32 `[channels, samples]` in -1..1, and its sampling rate in Hz.
Sound = tuple[torch.Tensor, int]


class AudioNetwork(nn.Module, ABC):
    """
    An audio network with its front end.

    Attributes:
        sampling_rate: Sampling rate of its input in Hz.
        min_samples: Shorter sounds are padded with silence to this length.
    """

    sampling_rate: int
    min_samples: int

    @abstractmethod
    def mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Compute the input of [`forward`] from a prepared mono waveform `[samples]`, without the batch dimension."""

    @abstractmethod
    def forward(self, mel: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Compute features of a batch of inputs: `windows`, embeddings `[B, windows, D]`; for networks with classes also
        `logits`, `[B, classes]`.
        """

    @torch.inference_mode()
    def embed(self, sounds: list[Sound]) -> list[dict[str, torch.Tensor]]:
        """Compute the features of each sound, on the CPU and without the batch dimension. Equally long sounds share a
        batch."""
        groups = defaultdict(dict)
        for index, (waveform, sampling_rate) in enumerate(sounds):
            mono = prepare(waveform, sampling_rate, self.sampling_rate)
            mel = self.mel(F.pad(mono, (0, max(0, self.min_samples - len(mono)))))
            groups[mel.shape][index] = mel
        features = {}
        device = next(self.parameters()).device
        for group in groups.values():
            batch = self(torch.stack(list(group.values())).to(device))
            for row, index in enumerate(group):
                features[index] = {name: tensor[row].cpu() for name, tensor in batch.items()}
        return [features[index] for index in range(len(sounds))]
