"""Multimodal Adaptive Fusion, where learned experts exchange information between the modalities."""

import torch
import torch.nn as nn

from .attention_audiox import AudioXAttention, AudioXEncoderBlock


class AudioXFusion(nn.Module):
    """
    Multimodal Adaptive Fusion, MAF (arXiv 2503.10522v3, section 3). A gate weights each modality, learned experts
    attend to all modalities, and a transformer runs over the experts. Each modality has a third of the experts, whose
    mean is added to all its tokens.

    Args:
        dim: Width of the tokens.
        num_experts: Number of experts per modality.
        num_heads: Number of attention heads.
        num_layers: Number of transformer layers over the experts.
    """

    def __init__(self, dim: int, num_experts: int, num_heads: int, num_layers: int):
        super().__init__()
        head_dim = dim // num_heads
        self.gate_in = nn.Linear(3 * dim, dim)
        self.gate_out = nn.Linear(dim, 3)
        self.experts = nn.Parameter(torch.zeros(3 * num_experts, dim))
        self.attn = AudioXAttention(dim, num_heads, head_dim, cross_attention_dim=dim, bias=True, out_bias=True)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            [AudioXEncoderBlock(dim, num_heads, head_dim, bias=True) for _ in range(num_layers)]
        )
        self.norm_out = nn.ModuleList([nn.LayerNorm(dim) for _ in range(3)])
        self.bypass_gate_0 = nn.Parameter(torch.zeros(()))
        self.bypass_gate_1 = nn.Parameter(torch.zeros(()))
        self.bypass_gate_2 = nn.Parameter(torch.zeros(()))

    def forward(self, *modalities: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Fuse three modalities, each `[B, N_i, D]`. Shapes and order stay the same."""
        pooled = torch.cat([tokens.mean(dim=1) for tokens in modalities], dim=-1)
        gates = self.gate_out(nn.functional.gelu(self.gate_in(pooled))).sigmoid()
        context = torch.cat([gates[:, i, None, None] * tokens for i, tokens in enumerate(modalities)], dim=1)

        experts = self.experts.expand(context.shape[0], -1, -1)
        experts = self.norm(experts + self.attn(experts, context))
        for block in self.blocks:
            experts = block(experts)

        means = [norm(part.mean(dim=1)) for norm, part in zip(self.norm_out, experts.chunk(3, dim=1), strict=True)]
        bypass_gates = (self.bypass_gate_0, self.bypass_gate_1, self.bypass_gate_2)
        return tuple(
            tokens + gate.sigmoid() * mean[:, None]
            for tokens, gate, mean in zip(modalities, bypass_gates, means, strict=True)
        )
