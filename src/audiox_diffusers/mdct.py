"""The modified discrete cosine transform (MDCT) as the initial weights of a VAE."""

import math

import torch

from .models import AudioXAutoencoderOobleck


@torch.no_grad()
def initialize_with_mdct(vae: AudioXAutoencoderOobleck) -> None:
    """
    Initialize the outermost layers of a VAE with an MDCT and its inverse, which training would have to find otherwise.

    The MDCT has sine windows of `2 R` samples (Princen, Johnson and Bradley, 1987), where `R` is the first downsampling
    ratio.

    - Encoder: the first convolution copies audio channel `c` to its channel `c`. The first block computes `R` bands of
      it, lowest first, as its channels `c R` to `(c + 1) R - 1`. Frame `t` covers the samples `t R` to `(t + 1) R` and
      `R / 2` more on either side.
    - Decoder: the last block computes audio channel `c` from the bands in the same channels, and the last convolution
      copies it. The Snake in between turns a band `b` into `b + sin(b)^2`, which changes loud sounds, but not soft ones.
      The first and last `R / 2` samples stay aliased, because a neighbouring frame is missing.

    The residual units change the result by less than 1 % and add a constant offset below -40 dB of full scale. All
    other weights stay random; those between the sound and channels without a band are divided by 10.

    Args:
        vae: VAE without weight norm. Its outermost layers need at least as many channels as the audio, and `R` times as
            many after the first block.

    Raises:
        ValueError: If the VAE has weight norm or too few channels.
    """
    if vae.config.use_weight_norm:
        raise ValueError("an MDCT needs plain weights: fold the weight norm first")
    channels, ratio = vae.config.audio_channels, vae.config.downsampling_ratios[0]
    first, last = vae.encoder.block[0], vae.decoder.block[-1]
    width = min(first.conv1.in_channels, last.conv_t1.out_channels)
    if width < channels:
        raise ValueError(f"an MDCT needs a first layer as wide as the {channels} audio channels, the VAE has {width}")
    width = min(first.conv1.out_channels, last.conv_t1.in_channels)
    if width < channels * ratio:
        raise ValueError(
            f"an MDCT of {channels} audio channels with the first ratio {ratio} needs {channels * ratio} channels"
            f" after the first block, the VAE has {width}"
        )

    # Not zero, so that the layers before conv2 still get gradients.
    for block in (first, last):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2.weight.mul_(0.01)
            unit.conv2.bias.zero_()
    # Snake is x + sin^2(exp(alpha) x) / exp(beta): with this alpha it is almost linear. The Snake before the inverse
    # MDCT keeps its alpha: it is the only nonlinearity between the bands and the layers that compute them.
    for snake in (first.snake1, vae.decoder.snake1):
        snake.alpha.fill_(-4.0)

    for conv in (vae.encoder.conv1, vae.decoder.conv2, last.conv_t1):
        conv.weight.mul_(0.1)
    for bias in (vae.encoder.conv1.bias, last.conv_t1.bias):
        bias.zero_()
    basis = mdct_basis(ratio)
    for channel in range(channels):
        bands = slice(channel * ratio, (channel + 1) * ratio)
        first.conv1.bias[bands] = 0
        for conv in (first.conv1, last.conv_t1):
            conv.weight[bands] = 0
            conv.weight[bands, channel] = basis
        for conv in (vae.encoder.conv1, vae.decoder.conv2):
            conv.weight[channel] = 0
            conv.weight[channel, channel, conv.kernel_size[0] // 2] = 1


def mdct_basis(bands: int) -> torch.Tensor:
    """Return the windowed cosines of the MDCT, an orthonormal lapped basis, shape `[bands, 2 * bands]`."""
    sample, band = torch.arange(2 * bands) + 0.5, torch.arange(bands) + 0.5
    window = torch.sin(math.pi / (2 * bands) * sample)
    return math.sqrt(2 / bands) * window * torch.cos(math.pi / bands * (sample + bands / 2) * band[:, None])
