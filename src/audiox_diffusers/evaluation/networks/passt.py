"""PaSST-S (Koutini et al., arXiv 2110.05069): a vision transformer on spectrograms, without patchout."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..frontends import passt_mel
from .base import AudioNetwork


class PasstAttention(nn.Module):
    """Self-attention with a fused projection, as timm stores it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, tokens, D]` to `[B, tokens, D]`."""
        query, key, value = self.qkv(hidden_states).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class PasstBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PasstAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, tokens, D]` to `[B, tokens, D]`."""
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states))
        return hidden_states + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(hidden_states))))


class Passt(AudioNetwork):
    """
    PaSST-S with the tensor names of the released `passt-s-f128-p16-s10-ap.476-swa.pt`. Patches of 16 x 16 overlap with a
    stride of 10. Frequency and time have separate position embeddings.
    """

    sampling_rate = 32_000
    min_samples = 320_000

    def __init__(self, dim: int = 768, depth: int = 12, heads: int = 12, num_classes: int = 527):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, dim))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, dim, 12, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, dim, 1, 99))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, dim, 16, stride=10)})
        self.blocks = nn.ModuleList([PasstBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Log-mel `[128, 1000]` of the first 10 s."""
        return passt_mel(waveform[: self.min_samples])

    def forward(self, mel: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute `windows` `[B, 1, 768]` and `logits` `[B, 527]` of log-mel spectrograms `[B, 128, frames]` of up to 10 s."""
        patches = self.patch_embed["proj"](mel[:, None])
        patches = patches + self.time_new_pos_embed[..., : patches.shape[3]] + self.freq_new_pos_embed
        special = torch.cat((self.cls_token, self.dist_token), dim=1) + self.new_pos_embed
        hidden_states = torch.cat((special.expand(len(mel), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        embeddings = self.norm(hidden_states)[:, :2].mean(dim=1)
        return {"windows": embeddings[:, None], "logits": self.head(embeddings)}
