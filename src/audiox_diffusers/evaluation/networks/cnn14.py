"""CNN14 of PANNs (Kong et al., arXiv 1912.10211): embeddings and the logits of AudioSet's 527 classes."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..frontends import cnn14_mel
from .base import AudioNetwork


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, frames, mels]` to `[B, out_channels, frames, mels]`."""
        hidden_states = F.relu(self.bn1(self.conv1(hidden_states)))
        return F.relu(self.bn2(self.conv2(hidden_states)))


class Cnn14(AudioNetwork):
    """
    CNN14 with the tensor names of the released checkpoints. Their filter bank is left out.

    Args:
        sampling_rate: 16,000 or 32,000 Hz. Each has its own checkpoint.
    """

    def __init__(self, sampling_rate: int = 16_000):
        super().__init__()
        self.sampling_rate = sampling_rate
        self.min_samples = 2 * sampling_rate
        self.bn0 = nn.BatchNorm2d(64)
        self.conv_block1 = ConvBlock(1, 64)
        self.conv_block2 = ConvBlock(64, 128)
        self.conv_block3 = ConvBlock(128, 256)
        self.conv_block4 = ConvBlock(256, 512)
        self.conv_block5 = ConvBlock(512, 1024)
        self.conv_block6 = ConvBlock(1024, 2048)
        self.fc1 = nn.Linear(2048, 2048)
        self.fc_audioset = nn.Linear(2048, 527)

    def mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Mel spectrogram in dB, `[frames, 64]`."""
        return cnn14_mel(waveform, self.sampling_rate)

    def forward(self, mel: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute `windows` `[B, 1, 2048]` and `logits` `[B, 527]` of mel spectrograms in dB, `[B, frames, 64]`."""
        hidden_states = self.bn0(mel[:, None].transpose(1, 3)).transpose(1, 3)
        for number in range(1, 6):
            hidden_states = F.avg_pool2d(getattr(self, f"conv_block{number}")(hidden_states), 2)
        hidden_states = self.conv_block6(hidden_states).mean(dim=3)
        pooled = hidden_states.amax(dim=2) + hidden_states.mean(dim=2)
        embeddings = F.relu(self.fc1(pooled))
        return {"windows": embeddings[:, None], "logits": self.fc_audioset(embeddings)}
