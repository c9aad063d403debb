"""Encode and decode long audio in tiles. The result equals that of one pass."""

from collections.abc import Iterator

import torch

from ..models import AudioXAutoencoderOobleck


def decode_tiles(
    vae: AudioXAutoencoderOobleck,
    latents: torch.Tensor,
    first: int = 0,
    end: int | None = None,
    lowest: int = 0,
) -> Iterator[torch.Tensor]:
    """
    Decode latent frames `first` to `end` tile by tile.

    Args:
        vae: VAE, which sets the size of the tiles.
        latents: Latents `[B, C, L]`.
        first, end: Range of frames. Defaults to all frames.
        lowest: First frame that tiles may read.

    Yields:
        Consecutive pieces of the waveform, float32 `[B, channels, samples]`.
    """
    hop = vae.hop_length
    for start, stop, lower, upper in vae.decoder_tiles(first, latents.shape[-1] if end is None else end, lowest):
        part = vae.decode(latents[..., lower:upper]).sample
        yield part[..., (start - lower) * hop : (stop - lower) * hop].float()


def encode_tiles(
    vae: AudioXAutoencoderOobleck, waveform: torch.Tensor, first: int, end: int, device: torch.device
) -> torch.Tensor:
    """
    Encode latent frames `first` to `end` of a waveform tile by tile.

    Args:
        vae: VAE, which sets the size of the tiles.
        waveform: Waveform `[B, channels, samples]` on any device, with a whole number of frames.
        first, end: Range of frames.
        device: Device to encode on.

    Returns:
        The mode of the posterior, float32 `[B, C, end - first]` on the CPU.
    """
    hop, parts = vae.hop_length, []
    for start, stop, lower, upper in vae.encoder_tiles(first, end):
        part = waveform[..., lower * hop : upper * hop].to(device, vae.dtype)
        parts.append(vae.encode(part).latent_dist.mode()[..., start - lower : stop - lower].cpu())
    return torch.cat(parts, dim=-1)
