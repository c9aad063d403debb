"""Stable Audio's Oobleck VAE: the one of diffusers, with what that lacks for AudioX."""

import math
import warnings

import torch
import torch.nn as nn
from diffusers import AutoencoderOobleck
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDecoderOutput
from torch.nn.utils import remove_weight_norm, weight_norm

# Half the receptive field of a residual unit's three dilated convolutions, kernel 7, dilations 1, 3 and 9.
_RESIDUAL_RADIUS = 3 * (1 + 3 + 9)


class AudioXAutoencoderOobleck(AutoencoderOobleck):
    r"""
    [`AutoencoderOobleck`] (Stable Audio Open, arXiv 2407.14358, section 3.1) with

    - the width of the encoder's output free of the width of its first layer;
    - weight norm folded into plain weights, which is exact, smaller and faster, and what group offloading and
      layerwise casting need. [`~AudioXAutoencoderOobleck.apply_weight_norm`] brings it back for training;
    - tiles that overlap by the whole receptive field: with `enable_tiling()` long sounds are encoded and decoded in
      bounded memory, and the result is the untiled one;
    - a posterior in float32, so that a seed draws the same noise in every precision;
    - a decoder that stays in float32 when the model is loaded in half precision, where its noise would be audible.

    Parameters:
        encoder_hidden_size, downsampling_ratios, channel_multiples, decoder_channels, decoder_input_channels,
        audio_channels, sampling_rate: as in [`AutoencoderOobleck`]; `decoder_input_channels` is the number of latent
            channels. Ratios must be even.
        use_weight_norm (`bool`): whether convolutions carry weight norm (`weight_g`, `weight_v`) or plain weights.
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
            # The base class is written with the weight norm that torch deprecates.
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
        """How many latent frames to either side an output sample depends on."""
        radius = 3
        for stride in reversed(upsampling_ratios):
            radius = math.ceil((radius + _RESIDUAL_RADIUS) / stride) + 1
        return radius + 3

    @staticmethod
    def _encoder_radius(downsampling_ratios: list[int]) -> int:
        """How many samples to either side of its own a latent frame depends on."""
        radius = 1
        for stride in reversed(downsampling_ratios):
            radius = radius * stride + 2 * stride + _RESIDUAL_RADIUS
        return radius + 3

    def _convolutions(self):
        return [module for module in self.modules() if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))]

    def fold_weight_norm(self) -> None:
        """Replace weight norm by the plain weights that it computes. The outputs stay the same."""
        if not self.config.use_weight_norm:
            raise ValueError("weight norm is folded already")
        for conv in self._convolutions():
            remove_weight_norm(conv)
        self.register_to_config(use_weight_norm=False)
        self._supports_group_offloading = True

    def apply_weight_norm(self) -> None:
        """Give every convolution weight norm, for training. The outputs stay the same up to rounding."""
        if self.config.use_weight_norm:
            raise ValueError("weight norm is applied already")
        for conv in self._convolutions():
            weight_norm(conv)
        self.register_to_config(use_weight_norm=True)
        self._supports_group_offloading = False

    def _tiled_encode(self, x: torch.Tensor) -> torch.Tensor:
        """The base class rounds what it trims off, which loses frames where the last one is incomplete."""
        hop, frames = self.hop_length, x.shape[-1] // self.hop_length
        overlap = math.ceil(self.tile_sample_overlap / hop)
        stride = self.tile_sample_min_length // hop - 2 * overlap
        if stride <= 0:
            raise ValueError(
                f"`tile_sample_min_length` ({self.tile_sample_min_length}) must be greater than twice"
                f" `tile_sample_overlap` ({self.tile_sample_overlap})."
            )
        tiles = []
        for start in range(0, frames, stride):
            first, end = max(0, start - overlap), start + stride + overlap
            tile = self.encoder(x[..., first * hop : end * hop if end < frames else None])
            tiles.append(tile[..., start - first : start - first + stride])
        return torch.cat(tiles, dim=-1)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        # The posterior is float32 whatever the encoder is, so that a seed gives the same draw in every precision.
        return super()._encode(x).float()

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> OobleckDecoderOutput | tuple[torch.Tensor]:
        return super()._decode(z.to(self.decoder.conv1.bias.dtype), return_dict=return_dict)
