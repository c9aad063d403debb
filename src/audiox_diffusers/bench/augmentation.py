"""Augmentations that make clean sounds as imperfect as generated ones."""

import numpy as np
import torch
import torch.nn.functional as F

from .features import RATE

# Ranges that `augment` draws from.
NOISE = (0.0, 40.0)  # dB below the sound
TILT = 4.0  # dB per octave, either way
SMEAR = 4  # frames of 8 ms to either side, at most
GAIN = (-20.0, 3.0)  # dB


def augment(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise, change timbre and level, and smear half of the sounds over time. Shape `[samples]`, mono at 16 kHz."""
    sound = _tilt(add_noise(sound, rng, rng.uniform(*NOISE), rng.uniform(0, 1.5)), rng.uniform(-TILT, TILT))
    if rng.random() < 0.5:
        sound = smear(sound, rng, int(rng.integers(1, SMEAR + 1)), keep_phases=rng.random() < 0.5)
    return (sound * 10 ** (rng.uniform(*GAIN) / 20)).astype(np.float32)


def add_noise(sound: np.ndarray, rng: np.random.Generator, below: float, slope: float = 0.0) -> np.ndarray:
    """Add noise `below` dB softer than the sound, with a power spectral density of `f ** -slope`."""
    frequency = np.fft.rfftfreq(len(sound), 1 / RATE)
    spectrum = np.fft.rfft(rng.standard_normal(len(sound))) * np.maximum(frequency, 20) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, len(sound))
    level = np.sqrt(np.square(sound).mean() / np.square(noise).mean()) * 10 ** (-below / 20)
    return (sound + level * noise).astype(np.float32)


def _tilt(sound: np.ndarray, slope: float) -> np.ndarray:
    """Tilt the spectrum around 1 kHz by `slope` dB per octave, down to 50 Hz."""
    frequency = np.maximum(np.fft.rfftfreq(len(sound), 1 / RATE), 50)
    gain = 10 ** (slope * np.log2(frequency / 1000) / 20)
    return np.fft.irfft(np.fft.rfft(sound) * gain, len(sound)).astype(np.float32)


def smear(sound: np.ndarray, rng: np.random.Generator, radius: int, keep_phases: bool) -> np.ndarray:
    """Average STFT magnitudes over `radius` frames of 8 ms to either side; phases are kept or become random."""
    window = torch.hann_window(512)
    spectrum = torch.stft(torch.from_numpy(sound), 512, 128, window=window, return_complex=True, pad_mode="constant")
    magnitude = F.avg_pool1d(spectrum.abs()[None], 2 * radius + 1, stride=1, padding=radius)[0]
    phase = spectrum.angle() if keep_phases else torch.from_numpy(rng.uniform(-np.pi, np.pi, spectrum.shape)).float()
    return torch.istft(torch.polar(magnitude, phase), 512, 128, window=window, length=len(sound)).numpy()
