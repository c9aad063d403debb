"""VGGish (Hershey et al., arXiv 1609.09430): the network of the Fréchet audio distance."""

import torch
import torch.nn as nn

from ..frontends import vggish_mel
from .base import AudioNetwork


class VGGish(AudioNetwork):
    """
    VGGish with the tensor names of `vggish-10086976.pth`, the file that PyTorch ports share. It embeds patches of 0.96 s,
    without the last activation, PCA and quantisation.
    """

    sampling_rate = 16_000
    min_samples = 15_600

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for widths in ((64,), (128,), (256, 256), (512, 512)):
            for out_width in widths:
                layers += [nn.Conv2d(width, out_width, 3, padding=1), nn.ReLU()]
                width = out_width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Log-mel patches `[patches, 96, 64]`."""
        return vggish_mel(waveform)

    def forward(self, mel: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute `windows` `[B, patches, 128]` of log-mel patches `[B, patches, 96, 64]`; each patch counts as a sample."""
        hidden_states = self.features(mel.flatten(0, 1)[:, None])
        embeddings = self.embeddings(hidden_states.permute(0, 2, 3, 1).flatten(1))
        return {"windows": embeddings.unflatten(0, mel.shape[:2])}
