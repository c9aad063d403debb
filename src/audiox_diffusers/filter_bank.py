"""A start for the training of a VAE: its outermost layers as a bank of band filters, instead of noise."""

import math

import torch

from .models import AudioXAutoencoderOobleck


@torch.no_grad()
def start_from_filter_bank(vae: AudioXAutoencoderOobleck) -> None:
    """
    Make a transform and its inverse of the outermost layers of a VAE, which training would have to find otherwise: the
    modified discrete cosine transform with sine windows (Princen, Johnson and Bradley, 1987), of `2 R` samples each,
    where `R` is the first of the downsampling ratios.

    - The encoder's first convolution passes audio channel `c` on as its channel `c`, and its first block makes `R` bands
      of that, from the lowest up, as its channels `c R` to `(c + 1) R - 1`. Frame `t` is of the samples around `t R` to
      `(t + 1) R`, half as many again on either side.
    - The decoder's last block makes audio channel `c` of the bands in the same channels, and its last convolution passes
      it on. Snake comes before: of a band `b` it makes `b + sin(b)^2`, so that soft sounds come back, and loud ones
      bent. The first and last `R / 2` samples come back aliased, as a frame beyond them is missing.

    Residual units in between change either by less than a hundredth, and add an offset, to silence too, that is below
    -40 dB of full scale. All else stays random; what leads to or from the sound past the bands has a tenth of its weight.

    Args:
        vae: with plain weights. It must be as wide as the audio channels at the rate of the sound, and `R` times as wide
            after the first block.

    Raises:
        ValueError: it carries weight norm, or is too narrow.
    """
    if vae.config.use_weight_norm:
        raise ValueError("a filter bank needs plain weights: fold the weight norm first")
    channels, ratio = vae.config.audio_channels, vae.config.downsampling_ratios[0]
    first, last = vae.encoder.block[0], vae.decoder.block[-1]
    width = min(first.conv1.in_channels, last.conv_t1.out_channels)
    if width < channels:
        raise ValueError(f"a filter bank needs a first layer as wide as the {channels} audio channels, it has {width}")
    width = min(first.conv1.out_channels, last.conv_t1.in_channels)
    if width < channels * ratio:
        raise ValueError(
            f"a filter bank for {channels} audio channels and the first ratio {ratio} needs {channels * ratio} channels"
            f" after the first block, the VAE has {width}"
        )

    # A hundredth, not nothing: with nothing, what comes before in a unit would have no gradient.
    for block in (first, last):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2.weight.mul_(0.01)
            unit.conv2.bias.zero_()
    # Snake is x + sin^2(exp(alpha) x) / exp(beta): down here it hardly bends what is a sound. The one before the inverse
    # stays as it is, the only one between the bands and what makes them.
    for snake in (first.snake1, vae.decoder.snake1):
        snake.alpha.fill_(-4.0)

    # What is not the sound itself is softer than it, and can still be learned.
    for conv in (vae.encoder.conv1, vae.decoder.conv2, last.conv_t1):
        conv.weight.mul_(0.1)
    # A constant would be a sound that is always there.
    for bias in (vae.encoder.conv1.bias, last.conv_t1.bias):
        bias.zero_()
    bank = cosine_bank(ratio)
    for channel in range(channels):
        bands = slice(channel * ratio, (channel + 1) * ratio)
        first.conv1.bias[bands] = 0
        for conv in (first.conv1, last.conv_t1):
            conv.weight[bands] = 0
            conv.weight[bands, channel] = bank
        for conv in (vae.encoder.conv1, vae.decoder.conv2):
            conv.weight[channel] = 0
            conv.weight[channel, channel, conv.kernel_size[0] // 2] = 1


def cosine_bank(bands: int) -> torch.Tensor:
    """`[bands, 2 * bands]`: the windowed cosines of the transform, orthonormal with those `bands` samples away."""
    sample, band = torch.arange(2 * bands) + 0.5, torch.arange(bands) + 0.5
    window = torch.sin(math.pi / (2 * bands) * sample)
    return math.sqrt(2 / bands) * window * torch.cos(math.pi / bands * (sample + bands / 2) * band[:, None])
