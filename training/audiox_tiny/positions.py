"""
A position code for latent frames, built into the weights of a transformer and frozen during training.

Rotary embeddings give relative positions, and the time token is always the first token. A network as small as
audiox-tiny takes thousands of steps to infer from these which video frame belongs to a latent frame, and forgets a given
solution within a hundred steps if it is not frozen.

The code occupies `WAVES` + 2 channels of the hidden states. One channel is constant in all tokens, another one in the
time token alone. From these, self-attention in the second and third block attends to the time token by its distance,
which gives sines and cosines with periods of 8, 2.5, 1.4 and 0.8 seconds. They are the queries of the first
cross-attention head in the third to fifth block.

Frozen weights get no gradients. Where only a part of a tensor is frozen, weight decay still shrinks it, by half a percent
in 4700 steps.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn as nn

from audiox_diffusers.models import AudioXConditioner, AudioXTransformer2DModel

RATES = (6, 4, 3, 2)  # indices of rotary frequencies
WAVES = 2 * len(RATES)
HERE, TIME = -WAVES - 2, -WAVES - 1  # channels that are constant in all tokens and in the time token
# Large compared with the hidden states after training, because layer norms divide by their norm.
HERE_SIZE, TIME_SIZE = 16.0, 150.0
SHARPNESS, LOUDNESS = 0.25, 8.0
POSITION_BLOCKS, READING_BLOCKS = slice(1, 3), slice(2, 5)


def waves(seconds: torch.Tensor, latent_rate: float, rotary_dim: int) -> torch.Tensor:
    """Return cosines and sines with the frequencies of `RATES` at times `[N]`, shape `[N, WAVES]`."""
    frequencies = torch.tensor([10000 ** (-2 * rate / rotary_dim) for rate in RATES]) * latent_rate
    angles = seconds[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def writers(transformer: AudioXTransformer2DModel) -> Iterator[nn.Linear]:
    """Yield the layers that write to the hidden states."""
    yield transformer.proj_in
    yield transformer.time_embed.linear_2
    for block in transformer.transformer_blocks:
        yield from (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2])


@torch.no_grad()
def build_in_positions(transformer: AudioXTransformer2DModel) -> None:
    """Set the weights of the position code. The two blocks need `WAVES` self-attention heads together."""
    for writer in writers(transformer):
        for values in writer.parameters():
            values[HERE:] = 0
    transformer.transformer_blocks[0].ff.net[2].bias[HERE] = HERE_SIZE
    transformer.time_embed.linear_2.weight *= 20
    transformer.time_embed.linear_2.bias[TIME] = TIME_SIZE

    half = transformer.rotary_dim // 2
    attentions = [block.attn1 for block in transformer.transformer_blocks[POSITION_BLOCKS]]
    for attn in attentions:
        for values in attn.parameters():
            values.zero_()
    for wave in range(WAVES):
        attn = attentions[wave // attentions[0].heads]
        first = wave % attn.heads * attn.head_dim
        rate, phase = RATES[wave // 2], math.pi / 2 * (wave % 2)
        attn.to_q.weight[first + rate, HERE] = SHARPNESS
        attn.to_k.weight[first + rate, TIME] = SHARPNESS * math.cos(phase)
        attn.to_k.weight[first + rate + half, TIME] = SHARPNESS * math.sin(phase)
        attn.to_v.weight[first, TIME] = LOUDNESS
        attn.to_out[0].weight[wave - WAVES, first] = 1


def freeze_positions(transformer: AudioXTransformer2DModel, conditioner: AudioXConditioner) -> None:
    """
    Freeze the position code, the attention heads that read it, and the context that they compare it with: for videos the
    whole path, for text and audio the projection.
    """
    blocks = transformer.transformer_blocks
    # A growing time token would drown out its constant.
    transformer.time_embed.requires_grad_(False)
    for writer in writers(transformer):
        for values in writer.parameters():
            freeze_rows(values, slice(HERE, None))
    for block in blocks[POSITION_BLOCKS]:
        block.attn1.requires_grad_(False)
        freeze_rows(block.norm1.weight, slice(HERE, None))
    for block in blocks[READING_BLOCKS]:
        freeze_rows(block.attn2.to_q.weight, slice(0, block.attn2.head_dim))
        freeze_rows(block.attn2.to_k.weight, slice(0, block.attn2.head_dim))
        freeze_rows(block.norm2.weight, slice(HERE, None))
    transformer.context_embed.requires_grad_(False)
    conditioner.video_proj.requires_grad_(False)
    conditioner.video_proj.empty_embedding.requires_grad_(True)


def freeze_rows(parameter: nn.Parameter, rows: slice) -> None:
    """Zero the gradients of these rows."""

    def without(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    if parameter.requires_grad:
        parameter.register_hook(without)
