"""Which of the scenes' classes a sound is of."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ..scenes import SOUNDS
from .hearing import RATE, band_levels, cut, is_silent
from .onsets import detect_onsets

CLASSES = sorted(SOUNDS)
SILENT = "silence"

RANGE = 40.0  # dB below the loudest band, down to which sound counts
ACTIVE = 20.0  # dB below the loudest frame, down to which frames count
SHRINKAGE = 0.05  # of the covariance towards a multiple of the identity

# Ranges of what is done to the sounds that the classifier learns from.
NOISE = (0.0, 40.0)  # dB below the sound
TILT = 4.0  # dB an octave, at most
SMEAR = 4  # frames of 8 ms to either side, at most
GAIN = (-20.0, 3.0)  # dB


class SoundClassifier:
    """
    Linear discriminant analysis of log-mel statistics, learned from sounds with known answers.

    A sound is described by the mean, the standard deviation and the maximum over time of the level of each of 64
    bands, relative to the loudest band, over the frames within 20 dB of the loudest one: 192 numbers that depend
    neither on the sound's level nor on its length. It is taken to be of the class to whose mean it is nearest in the
    metric of the covariance within classes, shrunk by 5 % towards a multiple of the identity (Friedman, "Regularized
    discriminant analysis", 1989).

    Args:
        sounds: for each class, what to learn from, as [`~bench.hearing.listen`] gives it; equally many of each.
    """

    def __init__(self, sounds: dict[str, list[np.ndarray]]):
        self.classes = sorted(sounds)
        features = np.array([[_describe(sound) for sound in sounds[name]] for name in self.classes])
        means = features.mean(axis=1)  # [classes, D]
        within = (features - means[:, None]).reshape(-1, means.shape[1])
        covariance = within.T @ within / len(within)
        mean_variance = np.trace(covariance) / len(covariance)
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean_variance * np.eye(len(covariance))
        self.weights = np.linalg.solve(covariance, means.T)  # [D, classes]
        self.offsets = -0.5 * (means.T * self.weights).sum(axis=0)

    def classify(self, sound: np.ndarray) -> str:
        """The class of a sound as [`~bench.hearing.listen`] gives it, or "silence" if it is silent throughout."""
        if is_silent(sound):
            return SILENT
        return self.classes[int(np.argmax(_describe(sound) @ self.weights + self.offsets))]

    def hear(self, sound: np.ndarray) -> list[tuple[str, float]]:
        """The class of what begins at each onset of a sound and lasts to the next, and the onset in seconds."""
        onsets = detect_onsets(sound)
        ends = [*onsets[1:], len(sound) / RATE]
        heard = [(self.classify(cut(sound, start, end)), start) for start, end in zip(onsets, ends)]
        return [(name, start) for name, start in heard if name != SILENT]


def _describe(sound: np.ndarray) -> np.ndarray:
    """`[192]`."""
    levels = band_levels(sound)
    loudest = levels.amax(dim=0)
    levels = (levels[:, loudest >= loudest.max() - ACTIVE] - loudest.max()).clamp(min=-RANGE)
    return torch.cat((levels.mean(dim=1), levels.std(dim=1, correction=0), levels.amax(dim=1))).double().numpy()


def learn_classifier(make: Callable[[str, int], np.ndarray], each: int = 30, seed: int = 0) -> SoundClassifier:
    """
    A classifier of the scenes' classes, learned from clean sounds that are made worse in every way in which generated
    sounds are imperfect: noise, another timbre, smearing over time, another level.

    Args:
        make: gives the sound of a class, as [`~bench.hearing.listen`] does, for a number from 0 on.
        each: how many of each class to learn from.
        seed: of what is done to them.
    """
    rng = np.random.default_rng(seed)
    return SoundClassifier({name: [spoil(make(name, index), rng) for index in range(each)] for name in CLASSES})


def spoil(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sound `[samples]` with noise, another timbre, half of the time smeared over time, at another level."""
    sound = _tilt(add_noise(sound, rng, rng.uniform(*NOISE), rng.uniform(0, 1.5)), rng.uniform(-TILT, TILT))
    if rng.random() < 0.5:
        sound = smear(sound, rng, int(rng.integers(1, SMEAR + 1)), keep_phases=rng.random() < 0.5)
    return (sound * 10 ** (rng.uniform(*GAIN) / 20)).astype(np.float32)


def add_noise(sound: np.ndarray, rng: np.random.Generator, below: float, slope: float = 0.0) -> np.ndarray:
    """Add noise of a power `below` dB under that of the sound and a spectral density of `f ** -slope`."""
    frequency = np.fft.rfftfreq(len(sound), 1 / RATE)
    spectrum = np.fft.rfft(rng.standard_normal(len(sound))) * np.maximum(frequency, 20) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, len(sound))
    level = np.sqrt(np.square(sound).mean() / np.square(noise).mean()) * 10 ** (-below / 20)
    return (sound + level * noise).astype(np.float32)


def _tilt(sound: np.ndarray, slope: float) -> np.ndarray:
    """Raise the level by `slope` dB with each octave, lower it with each octave below 1 kHz; flat below 50 Hz."""
    frequency = np.maximum(np.fft.rfftfreq(len(sound), 1 / RATE), 50)
    gain = 10 ** (slope * np.log2(frequency / 1000) / 20)
    return np.fft.irfft(np.fft.rfft(sound) * gain, len(sound)).astype(np.float32)


def smear(sound: np.ndarray, rng: np.random.Generator, radius: int, keep_phases: bool) -> np.ndarray:
    """Average the magnitudes of short spectra over `radius` frames of 8 ms to either side; phases may become random."""
    window = torch.hann_window(512)
    spectrum = torch.stft(torch.from_numpy(sound), 512, 128, window=window, return_complex=True, pad_mode="constant")
    magnitude = F.avg_pool1d(spectrum.abs()[None], 2 * radius + 1, stride=1, padding=radius)[0]
    phase = spectrum.angle() if keep_phases else torch.from_numpy(rng.uniform(-np.pi, np.pi, spectrum.shape)).float()
    return torch.istft(torch.polar(magnitude, phase), 512, 128, window=window, length=len(sound)).numpy()
