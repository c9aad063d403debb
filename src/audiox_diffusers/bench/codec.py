"""How well a VAE gives sounds back, beside MP3."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..media import load_audio, log_mel_distance, save_audio
from ..media.write import AUDIO_FORMATS, VIDEO_FORMATS
from ..models import AudioXAutoencoderOobleck
from .scores import Score, mean

MP3_BIT_RATE = 64_000


@torch.no_grad()
def reconstruct(vae: AudioXAutoencoderOobleck, sound: np.ndarray) -> np.ndarray:
    """A sound `[channels, samples]` at the VAE's rate, encoded to the posterior's mode and decoded; float32."""
    missing = -sound.shape[1] % vae.hop_length
    padded = torch.from_numpy(np.pad(sound, ((0, 0), (0, missing))))[None].to(vae.device, vae.dtype)
    decoded = vae.decode(vae.encode(padded).latent_dist.mode()).sample[0]
    return decoded[:, : sound.shape[1]].float().cpu().numpy()


def through_mp3(sound: np.ndarray, sampling_rate: int) -> np.ndarray:
    """A sound `[channels, samples]` after MP3 of 64 kbit/s; as much of it as there is, followed by silence."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sound.mp3"
        save_audio(file, sound.clip(-1, 1), sampling_rate, bit_rate=MP3_BIT_RATE)
        decoded = load_audio(file, sampling_rate=sampling_rate, channels=len(sound))[0].numpy()
    decoded = decoded[:, : sound.shape[1]]
    return np.pad(decoded, ((0, 0), (0, sound.shape[1] - decoded.shape[1])))


def score_vae(vae: AudioXAutoencoderOobleck, clips: Sequence[np.ndarray]) -> dict[str, Score]:
    """
    The mean [`log_mel_distance`] of clips to what the VAE makes of them, and to what MP3 of 64 kbit/s does. Equal
    sounds are at distance 0.

    Args:
        vae: the VAE.
        clips: float `[channels, samples]` each, at its rate.
    """
    rate = vae.config.sampling_rate
    distances = {
        "log-mel distance": [log_mel_distance(clip, reconstruct(vae, clip), rate) for clip in clips],
        "of 64 kbit/s MP3": [log_mel_distance(clip, through_mp3(clip, rate), rate) for clip in clips],
    }
    return {name: Score(mean(values), None, len(clips)) for name, values in distances.items()}


def load_clips(
    folder: str | os.PathLike, count: int, sampling_rate: int, channels: int, seconds: float
) -> list[np.ndarray]:
    """
    The beginnings of sounds and videos in a folder and the folders in it, in the order of their paths.

    Args:
        folder: where they are.
        count: how many to take at most.
        sampling_rate, channels: what to bring them to.
        seconds: how much of each to take at most.

    Returns:
        float32 `[channels, samples]` each.

    Raises:
        FileNotFoundError: there is no such folder, or no sound or video in it.
        MediaError: a file cannot be read.
    """
    formats = AUDIO_FORMATS.keys() | VIDEO_FORMATS.keys()
    files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in formats)
    if not files:
        raise FileNotFoundError(f"{folder}: no folder with sounds ({', '.join(sorted(formats))})")
    return [load_audio(file, sampling_rate, channels, duration=seconds)[0].numpy() for file in files[:count]]
