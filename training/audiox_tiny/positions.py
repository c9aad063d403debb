"""
Where a latent frame is, built into the weights of a transformer, and held there while it is trained.

Rotary embeddings tell tokens how far apart they are, and where the time token is, which is the first. A network of the
size of audiox-tiny takes thousands of steps to make of that which frame of a video is its own, and unlearns in a hundred
what it is given and does not use yet.

`WAVES` and two more channels of the hidden states are kept for it. All tokens have a constant in one, the time token
alone in another. From these, the self-attention of the second and third block attends to the time token the more, the nearer its
distance is to a multiple of a length: sines and cosines of 8, 2.5, 1.4 and 0.8 seconds. In the third to the fifth block
the first head of the cross-attention has them as its queries.

What is held gets no gradients. Of the parts of weights that are, weight decay takes half a percent in 4700 steps.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn as nn

from audiox_diffusers.models import AudioXConditioner, AudioXTransformer2DModel

RATES = (6, 4, 3, 2)  # of the rotations of the transformer's heads
WAVES = 2 * len(RATES)
HERE, TIME = -WAVES - 2, -WAVES - 1  # channels of the constants of all tokens and of the time token
# Large, beside what training adds to the hidden states: layer norms divide by the size of all of it.
HERE_SIZE, TIME_SIZE = 16.0, 150.0
SHARPNESS, LOUDNESS = 0.25, 8.0
POSITION_BLOCKS, READING_BLOCKS = slice(1, 3), slice(2, 5)


def waves(seconds: torch.Tensor, latent_rate: float, rotary_dim: int) -> torch.Tensor:
    """Cosines and sines of `RATES`, which turn by the latent frame, at times `[N]`: `[N, WAVES]`."""
    frequencies = torch.tensor([10000 ** (-2 * rate / rotary_dim) for rate in RATES]) * latent_rate
    angles = seconds[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def writers(transformer: AudioXTransformer2DModel) -> Iterator[nn.Linear]:
    """The layers that make the hidden states and add to them."""
    yield transformer.proj_in
    yield transformer.time_embed.linear_2
    for block in transformer.transformer_blocks:
        yield from (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2])


@torch.no_grad()
def build_in_positions(transformer: AudioXTransformer2DModel) -> None:
    """See the top. Needs as many heads of self-attention in two blocks as there are `WAVES`."""
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


def hold_positions(transformer: AudioXTransformer2DModel, conditioner: AudioXConditioner) -> None:
    """
    Let what [`build_in_positions`] built in, what reads it, and the context that it is compared with, get no gradients:
    of videos all of it, of text and sound its projection.
    """
    blocks = transformer.transformer_blocks
    # A time token that grew would drown the constant in it.
    transformer.time_embed.requires_grad_(False)
    for writer in writers(transformer):
        for values in writer.parameters():
            hold(values, slice(HERE, None))
    for block in blocks[POSITION_BLOCKS]:
        block.attn1.requires_grad_(False)
        hold(block.norm1.weight, slice(HERE, None))
    for block in blocks[READING_BLOCKS]:
        hold(block.attn2.to_q.weight, slice(0, block.attn2.head_dim))
        hold(block.attn2.to_k.weight, slice(0, block.attn2.head_dim))
        hold(block.norm2.weight, slice(HERE, None))
    transformer.context_embed.requires_grad_(False)
    conditioner.video_proj.requires_grad_(False)
    conditioner.video_proj.empty_embedding.requires_grad_(True)


def hold(parameter: nn.Parameter, rows: slice) -> None:
    """Let these rows get no gradients."""

    def without(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    if parameter.requires_grad:
        parameter.register_hook(without)
