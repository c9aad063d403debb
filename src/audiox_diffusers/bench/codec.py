"""Reconstruction by a VAE, compared with MP3."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..media import load_audio, log_mel_distance, save_audio
from ..media.formats import AUDIO_FORMATS, VIDEO_FORMATS
from ..models import AudioXAutoencoderOobleck
from .scores import Score, mean

MP3_BIT_RATE = 64_000


@torch.no_grad()
def reconstruct(vae: AudioXAutoencoderOobleck, sound: np.ndarray) -> np.ndarray:
    """Encode a sound to the mode of the posterior and decode it: float32 `[channels, samples]` at the VAE's rate."""
    missing = -sound.shape[1] % vae.hop_length
    padded = torch.from_numpy(np.pad(sound, ((0, 0), (0, missing))))[None].to(vae.device, vae.dtype)
    decoded = vae.decode(vae.encode(padded).latent_dist.mode()).sample[0]
    return decoded[:, : sound.shape[1]].float().cpu().numpy()


def mp3_round_trip(sound: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Encode a sound `[channels, samples]` as MP3 with 64 kbit/s and decode it, cut or zero-padded to its length."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sound.mp3"
        save_audio(file, sound.clip(-1, 1), sampling_rate, bit_rate=MP3_BIT_RATE)
        decoded = load_audio(file, sampling_rate=sampling_rate, channels=len(sound))[0].numpy()
    decoded = decoded[:, : sound.shape[1]]
    return np.pad(decoded, ((0, 0), (0, sound.shape[1] - decoded.shape[1])))


def score_vae(vae: AudioXAutoencoderOobleck, clips: Sequence[np.ndarray]) -> dict[str, Score]:
    """
    Return the mean [`log_mel_distance`] between clips and their reconstruction, by the VAE and by MP3 with 64 kbit/s.

    Args:
        vae: The VAE.
        clips: Float waveforms at the VAE's rate, shape `[channels, samples]` each.
    """
    rate = vae.config.sampling_rate
    distances = {
        "log-mel distance": [log_mel_distance(clip, reconstruct(vae, clip), rate) for clip in clips],
        "of 64 kbit/s MP3": [log_mel_distance(clip, mp3_round_trip(clip, rate), rate) for clip in clips],
    }
    return {name: Score(mean(values), None, len(clips)) for name, values in distances.items()}


def load_clips(
    folder: str | os.PathLike, count: int, sampling_rate: int, channels: int, seconds: float
) -> list[np.ndarray]:
    """
    Load the beginnings of sounds and videos in a folder and its subfolders, in the order of their paths.

    Args:
        folder: Folder with the files.
        count: Maximum number of files.
        sampling_rate: Sampling rate to resample to, in Hz.
        channels: Number of channels to convert to.
        seconds: Maximum length of each clip.

    Returns:
        Float32 waveforms, shape `[channels, samples]` each.

    Raises:
        FileNotFoundError: If there is no such folder, or no sound or video in it.
        MediaError: If a file cannot be read.
    """
    formats = AUDIO_FORMATS.keys() | VIDEO_FORMATS.keys()
    files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in formats)
    if not files:
        raise FileNotFoundError(f"{folder}: no such folder, or no sounds in it ({', '.join(sorted(formats))})")
    return [load_audio(file, sampling_rate, channels, duration=seconds)[0].numpy() for file in files[:count]]
