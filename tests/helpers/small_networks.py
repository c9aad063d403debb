"""
Small networks that stand for the released ones, with the same interface. Run as a script, this is the `audiox` command
with them, for tests with several processes.
"""

import sys

import torch
import torch.nn as nn

from audiox_diffusers.cli import main
from audiox_diffusers.evaluation import catalog
from audiox_diffusers.evaluation.networks.aesthetics import AXES
from audiox_diffusers.evaluation.networks.base import AudioNetwork
from audiox_diffusers.evaluation.networks.synchformer import WINDOW, Synchformer


class Bands(AudioNetwork):
    """Levels of 12 bands in windows of half a second."""

    sampling_rate = 16_000
    min_samples = 8_000

    def __init__(self, seed: int):
        super().__init__()
        weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed))
        self.head = nn.Parameter(weight, requires_grad=False)

    def mel(self, waveform):
        return waveform[: len(waveform) // 8_000 * 8_000].unflatten(0, (-1, 8_000))

    def forward(self, mel):
        windows = torch.fft.rfft(mel).abs()[..., :4_000].unflatten(-1, (16, 250))[..., :12, :].mean(-1) / 10
        bands = windows.mean(dim=1)
        return {
            "windows": windows,
            "logits": bands @ self.head,
            "scores": 1 + bands[:, : len(AXES)],
        }

    def embed_texts(self, texts):
        """Each text names a band by its last word."""
        angles = 0.2 + 0.1 * torch.tensor([float(text.split()[-1]) for text in texts])
        centres = (angles / torch.pi * 8_000 / 250 / 2).round().long().clamp(max=11)
        return nn.functional.one_hot(centres, 12).float()


class Sync(nn.Module):
    """Synchformer's interface: tokens by the length of the sound and of the film."""

    video_fps = Synchformer.video_fps

    def visual_tokens(self, frames):
        return torch.zeros((len(frames) - 16) // 8 + 1, 8, 4)

    def audio_tokens(self, waveform, sampling_rate):
        return torch.zeros(int(waveform.shape[1] / sampling_rate / 0.32) - 1, 6, 4)

    def forward(self, visual, audio):
        if min(len(visual), len(audio)) < WINDOW:
            raise ValueError("DeSync needs clips of at least 4.8 s with sound and picture.")
        return torch.eye(21)[:2]


class SmallNetwork:
    licence = "none"

    def __init__(self, name: str, seed: int = 0):
        self.name, self.seed = name, seed
        self.input = catalog.NetworkInput("windows of 0.5 s", 16_000, 12)

    def identity(self, folder):
        return f"small, seed {self.seed}"

    def load(self, folder, device):
        return Sync() if self.name == "synchformer" else Bands(self.seed)


if __name__ == "__main__":
    for name in set(catalog.NETWORKS) - {"onsets"}:
        catalog.NETWORKS[name] = SmallNetwork(name)
    sys.exit(main())
