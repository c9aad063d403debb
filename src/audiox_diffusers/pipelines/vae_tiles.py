"""A few latent frames at a time, with as much around them as they depend on: the same as all at once."""

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
    The sound of latent frames `first` to `end`, in pieces that are decoded as they are asked for.

    Args:
        vae: tiles are as long as its `tile_latent_min_length`, and what is cut off at either end is its
            `tile_latent_overlap`, the receptive field.
        latents: `[B, C, L]`.
        first, end: frames, by default all.
        lowest: the first frame that there is.

    Returns:
        float32 `[B, channels, samples]`, one after the other.
    """
    end = latents.shape[-1] if end is None else end
    hop, halo = vae.hop_length, vae.tile_latent_overlap
    length = vae.tile_latent_min_length - 2 * halo
    for start in range(first, end, length):
        stop, before = min(start + length, end), max(lowest, start - halo)
        tile = vae.decode(latents[..., before : stop + halo]).sample
        yield tile[..., (start - before) * hop : (stop - before) * hop].float()


def encode_tiles(
    vae: AudioXAutoencoderOobleck, waveform: torch.Tensor, first: int, end: int, device: torch.device
) -> torch.Tensor:
    """
    The most likely latents of frames `first` to `end` of a sound.

    Args:
        vae: tiles are as for [`decode_tiles`], of its `tile_sample_min_length` and `tile_sample_overlap`.
        waveform: `[B, channels, N]` on any device, with whole frames.
        first, end: frames.
        device: where to encode.

    Returns:
        float32 `[B, C, end - first]` on the CPU.
    """
    hop = vae.hop_length
    halo = -(-vae.tile_sample_overlap // hop)
    length = vae.tile_sample_min_length // hop - 2 * halo
    tiles = []
    for start in range(first, end, length):
        stop, before = min(start + length, end), max(0, start - halo)
        tile = waveform[..., before * hop : (stop + halo) * hop].to(device, vae.dtype)
        tiles.append(vae.encode(tile).latent_dist.mode()[..., start - before : stop - before].cpu())
    return torch.cat(tiles, dim=-1)
