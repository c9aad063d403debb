"""Features for the metrics: mono sound at 16 kHz, and its levels."""

import math

import numpy as np
import torch

from ..media import log_mel, resample_audio

# The classes of the scenes differ below 8 kHz.
RATE = 16000  # Hz
HOP = 256 / RATE  # seconds between frames of `log_mel` at that rate

SILENCE = -40.0  # dB of full scale: frames up to this level are silent
FRAME = 0.05  # seconds, of `frame_levels`

TO_DECIBELS = 20 / math.log(10)  # from natural logarithms of amplitudes


def preprocess(sound: np.ndarray, sampling_rate: int) -> np.ndarray:
    """
    Convert a sound to the form that all metrics use.

    Args:
        sound: Floating-point waveform, shape `[channels, samples]`.
        sampling_rate: Sampling rate in Hz.

    Returns:
        Mean of the channels at 16 kHz, float32, shape `[samples * 16000 / sampling_rate]`.

    Raises:
        ValueError: If a sample is NaN or infinite.
    """
    mono = torch.as_tensor(sound, dtype=torch.float32).mean(dim=0)
    if not torch.isfinite(mono).all():
        raise ValueError("the model generated NaN or infinite samples")
    return resample_audio(mono, sampling_rate, RATE).numpy()


def band_levels(sound: np.ndarray) -> torch.Tensor:
    """Return the [`log_mel`] levels of a preprocessed sound in dB, shape `[64, frames]`."""
    return log_mel(sound, RATE) * TO_DECIBELS


def frame_levels(sound: np.ndarray) -> np.ndarray:
    """
    Return the root-mean-square level of each 50 ms of a preprocessed sound, in dB of full scale, shape `[frames]`.
    The last frame is padded with zeros.
    """
    size = round(FRAME * RATE)
    sound = np.pad(sound, (0, -len(sound) % size))
    power = np.square(sound.astype(np.float64)).reshape(-1, size).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 1e-12))


def is_silent(sound: np.ndarray) -> bool:
    """Return whether no 50 ms frame of a preprocessed sound is louder than -40 dB of full scale."""
    return bool(frame_levels(sound).max(initial=-math.inf) <= SILENCE)


def cut(sound: np.ndarray, start: float, end: float) -> np.ndarray:
    """Return the part of a preprocessed sound from `start` to `end`, in seconds."""
    return sound[max(0, round(start * RATE)) : round(end * RATE)]
