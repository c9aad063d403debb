"""How the bench listens: everything as mono at one rate, as loudness over time and frequency."""

import math

import numpy as np
import torch

from ..media import log_mel, resample_audio

# What tells the classes of the scenes apart lies below 8 kHz.
RATE = 16000  # Hz
HOP = 256 / RATE  # seconds from frame to frame of `log_mel` at that rate

SILENCE = -40.0  # dB below full scale: a moment that is no louder counts as silent
MOMENT = 0.05  # seconds

TO_DECIBELS = 20 / math.log(10)  # from natural logarithms of amplitudes


def listen(sound: np.ndarray, sampling_rate: int) -> np.ndarray:
    """
    A sound as all measures of the bench take it.

    Args:
        sound: floating point `[channels, samples]`.
        sampling_rate: its rate in Hz.

    Returns:
        The mean of the channels at 16 kHz, float32 `[samples * 16000 / sampling_rate]`.

    Raises:
        ValueError: a sample is NaN or infinite.
    """
    mono = torch.as_tensor(sound, dtype=torch.float32).mean(dim=0)
    if not torch.isfinite(mono).all():
        raise ValueError("the model made a sound with NaN or infinite samples")
    return resample_audio(mono, sampling_rate, RATE).numpy()


def band_levels(sound: np.ndarray) -> torch.Tensor:
    """Levels in dB, `[64, frames]`, of [`log_mel`] of a sound as [`listen`] gives it."""
    return log_mel(sound, RATE) * TO_DECIBELS


def moment_levels(sound: np.ndarray) -> np.ndarray:
    """
    Levels of a sound as [`listen`] gives it, in dB below full scale: those of the mean square of each 50 ms, `[moments]`.
    An incomplete moment at the end counts as if silence followed.
    """
    size = round(MOMENT * RATE)
    sound = np.pad(sound, (0, -len(sound) % size))
    power = np.square(sound.astype(np.float64)).reshape(-1, size).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 1e-12))


def is_silent(sound: np.ndarray) -> bool:
    """Whether no moment of a sound as [`listen`] gives it is louder than -40 dB below full scale."""
    return bool(moment_levels(sound).max(initial=-math.inf) <= SILENCE)


def cut(sound: np.ndarray, start: float, end: float) -> np.ndarray:
    """What is heard from `start` to `end`, in seconds, of a sound as [`listen`] gives it."""
    return sound[max(0, round(start * RATE)) : round(end * RATE)]
