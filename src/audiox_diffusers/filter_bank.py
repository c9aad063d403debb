"""A start for the training of a VAE: its outermost layers as a bank of band filters, instead of noise."""

import math

import torch

from .models import AudioXAutoencoderOobleck


@torch.no_grad()
def start_from_filter_bank(vae: AudioXAutoencoderOobleck) -> None:
    """
    Make the VAE's layers at the rate of the sound pass it on as it is, and those that follow, with the first ratio `R`,
    into `R` bands: the modified discrete cosine transform with sine windows of `2 R` samples (Princen, Johnson and
    Bradley, 1987). The decoder's last layers are its inverse. All other channels and layers stay as they are.

    A network with a large first ratio learns in far fewer steps from here than from random filters.

    Args:
        vae: with plain weights; its first blocks must be at least `R` channels wide.

    Raises:
        ValueError: it carries weight norm, or is too narrow.
    """
    if vae.config.use_weight_norm:
        raise ValueError("a filter bank needs plain weights: fold the weight norm first")
    ratio = vae.config.downsampling_ratios[0]
    first, last = vae.encoder.block[0], vae.decoder.block[-1]
    width = min(first.conv1.out_channels, last.conv_t1.in_channels)
    if width < ratio:
        raise ValueError(f"a filter bank for the first ratio {ratio} needs as many channels, the VAE has {width}")

    for block in (first, last):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2.weight.mul_(0.01)
            unit.conv2.bias.zero_()
    # Snake is x + sin^2(exp(alpha) x) / exp(beta): down here it hardly bends what is a sound.
    for snake in (first.snake1, vae.decoder.snake1):
        snake.alpha.fill_(-4.0)
    for conv in (vae.encoder.conv1, vae.decoder.conv2):
        conv.weight[:, :, :] *= 0.1
        conv.weight[0] = 0
        conv.weight[0, 0, conv.kernel_size[0] // 2] = 1

    vae.encoder.conv1.bias.zero_()

    bank = cosine_bank(ratio)
    first.conv1.weight[:ratio] = 0
    first.conv1.weight[:ratio, 0] = bank
    first.conv1.bias[:ratio] = 0
    last.conv_t1.weight[ratio:] *= 0.1
    last.conv_t1.weight[:ratio] = 0
    last.conv_t1.weight[:ratio, 0] = bank
    last.conv_t1.bias.zero_()


def cosine_bank(bands: int) -> torch.Tensor:
    """`[bands, 2 * bands]`: the windowed cosines of the transform, orthonormal with those `bands` samples away."""
    sample, band = torch.arange(2 * bands) + 0.5, torch.arange(bands) + 0.5
    window = torch.sin(math.pi / (2 * bands) * sample)
    return math.sqrt(2 / bands) * window * torch.cos(math.pi / bands * (sample + bands / 2) * band[:, None])
