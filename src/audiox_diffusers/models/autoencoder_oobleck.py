"""Stable Audio's Oobleck VAE: diffusers' model plus what AudioX needs."""

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn as nn
from diffusers import AutoencoderOobleck
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDecoderOutput
from torch.nn.utils import remove_weight_norm, weight_norm

from .model_audiox import AudioXModelMixin

# Half the receptive field of a residual block: three convolutions of kernel 7 with dilations 1, 3 and 9.
_RESIDUAL_RADIUS = 3 * (1 + 3 + 9)


class Tile(NamedTuple):
    """Latent frames `start` to `stop`, computed from frames `lower` to `upper`."""

    start: int
    stop: int
    lower: int
    upper: int


class AudioXAutoencoderOobleck(AudioXModelMixin, AutoencoderOobleck):
    r"""
    [`AutoencoderOobleck`] (Stable Audio Open, arXiv 2407.14358, section 3.1) with these differences:

    - The width of the encoder's output does not depend on the width of its first layer.
    - Weight norm is folded into plain weights. This is exact, smaller and faster, and group offloading and layerwise
      casting need it. [`~AudioXAutoencoderOobleck.apply_weight_norm`] restores weight norm for training.
    - Tiles overlap by the whole receptive field. With `enable_tiling()`, long audio is encoded and decoded in bounded
      memory, and the result equals the untiled one.
    - The posterior is float32, so a seed draws the same noise in every precision.
    - The decoder stays in float32 when the model is loaded in half precision, because its noise would be audible.

    Parameters:
        encoder_hidden_size, downsampling_ratios, channel_multiples, decoder_channels, decoder_input_channels,
        audio_channels, sampling_rate: See [`AutoencoderOobleck`]. `decoder_input_channels` is the number of latent
            channels. Ratios must be even.
        use_weight_norm (`bool`): Whether convolutions have weight norm (`weight_g`, `weight_v`) or plain weights.
    """

    _no_split_modules = ["OobleckEncoderBlock", "OobleckDecoderBlock"]
    _keep_in_fp32_modules = ["decoder"]
    _skip_layerwise_casting_patterns = ["decoder"]
    _supports_group_offloading = True
    _group_offload_block_modules = ["encoder", "decoder"]

    @register_to_config
    def __init__(
        self,
        encoder_hidden_size: int = 128,
        downsampling_ratios: list[int] = [2, 4, 4, 8, 8],
        channel_multiples: list[int] = [1, 2, 4, 8, 16],
        decoder_channels: int = 128,
        decoder_input_channels: int = 64,
        audio_channels: int = 2,
        sampling_rate: int = 44100,
        use_weight_norm: bool = False,
    ):
        if any(ratio % 2 for ratio in downsampling_ratios):
            raise ValueError(f"`downsampling_ratios` must be even, got {downsampling_ratios}.")
        width = encoder_hidden_size * channel_multiples[-1]
        with warnings.catch_warnings():
            # The base class uses torch's deprecated weight norm.
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(
                encoder_hidden_size=encoder_hidden_size,
                downsampling_ratios=list(downsampling_ratios),
                channel_multiples=list(channel_multiples),
                decoder_channels=decoder_channels,
                decoder_input_channels=decoder_input_channels,
                audio_channels=audio_channels,
                sampling_rate=sampling_rate,
            )
            self.encoder.conv2 = weight_norm(nn.Conv1d(width, 2 * decoder_input_channels, kernel_size=3, padding=1))
        self._supports_group_offloading = not use_weight_norm
        if not use_weight_norm:
            for conv in self._convolutions():
                remove_weight_norm(conv)

        tile_frames = 128
        halo_frames = max(
            self._decoder_radius(self.upsampling_ratios),
            math.ceil(self._encoder_radius(downsampling_ratios) / self.hop_length),
        )
        self.tile_latent_min_length = tile_frames + 2 * halo_frames
        self.tile_latent_overlap = halo_frames
        self.tile_sample_min_length = self.tile_latent_min_length * self.hop_length
        self.tile_sample_overlap = halo_frames * self.hop_length

    @staticmethod
    def _decoder_radius(upsampling_ratios: list[int]) -> int:
        """Number of latent frames on each side that an output sample depends on."""
        radius = 3
        for stride in reversed(upsampling_ratios):
            radius = math.ceil((radius + _RESIDUAL_RADIUS) / stride) + 1
        return radius + 3

    @staticmethod
    def _encoder_radius(downsampling_ratios: list[int]) -> int:
        """Number of samples on each side that a latent frame depends on."""
        radius = 1
        for stride in reversed(downsampling_ratios):
            radius = radius * stride + 2 * stride + _RESIDUAL_RADIUS
        return radius + 3

    def _convolutions(self):
        return [module for module in self.modules() if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))]

    def fold_weight_norm(self) -> None:
        """Replace weight norm by the plain weights it computes. Outputs stay the same."""
        if not self.config.use_weight_norm:
            raise ValueError("Weight norm is already folded.")
        for conv in self._convolutions():
            remove_weight_norm(conv)
        self.register_to_config(use_weight_norm=False)
        self._supports_group_offloading = True

    def apply_weight_norm(self) -> None:
        """Give every convolution weight norm, for training. Outputs stay the same up to rounding."""
        if self.config.use_weight_norm:
            raise ValueError("Weight norm is already applied.")
        for conv in self._convolutions():
            weight_norm(conv)
        self.register_to_config(use_weight_norm=True)
        self._supports_group_offloading = False

    def encoder_tiles(self, first: int, end: int) -> Iterator[Tile]:
        """Split latent frames `first` to `end` into tiles for the encoder."""
        length, overlap = self.tile_sample_min_length, self.tile_sample_overlap
        halo = math.ceil(overlap / self.hop_length)
        if length // self.hop_length <= 2 * halo:
            raise ValueError(
                f"`tile_sample_min_length` ({length}) must be greater than twice `tile_sample_overlap` ({overlap})."
            )
        return _tiles(first, end, 0, length // self.hop_length - 2 * halo, halo)

    def decoder_tiles(self, first: int, end: int, lowest: int = 0) -> Iterator[Tile]:
        """Split latent frames `first` to `end` into tiles for the decoder that use no frame below `lowest`."""
        length, halo = self.tile_latent_min_length, self.tile_latent_overlap
        if length <= 2 * halo:
            raise ValueError(
                f"`tile_latent_min_length` ({length}) must be greater than twice `tile_latent_overlap` ({halo})."
            )
        return _tiles(first, end, lowest, length - 2 * halo, halo)

    def _tiled_encode(self, x: torch.Tensor) -> torch.Tensor:
        # The base class rounds what it trims, and so loses frames when the last one is incomplete.
        hop, frames = self.hop_length, x.shape[-1] // self.hop_length
        parts = []
        for start, stop, lower, upper in self.encoder_tiles(0, frames):
            part = self.encoder(x[..., lower * hop : upper * hop if upper < frames else None])
            parts.append(part[..., start - lower : stop - lower])
        return torch.cat(parts, dim=-1)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        # In float32 a seed draws the same noise whatever the encoder's precision.
        return super()._encode(x).float()

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> OobleckDecoderOutput | tuple[torch.Tensor]:
        return super()._decode(z.to(self.decoder.conv1.bias.dtype), return_dict=return_dict)


def _tiles(first: int, end: int, lowest: int, length: int, halo: int) -> Iterator[Tile]:
    for start in range(first, end, length):
        stop = min(start + length, end)
        yield Tile(start, stop, max(lowest, start - halo), stop + halo)
