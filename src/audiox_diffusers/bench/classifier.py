"""Classification of sounds into the classes of the scenes."""

from collections.abc import Callable

import numpy as np
import torch

from ..scenes import SOUNDS
from .augmentation import augment
from .features import RATE, band_levels, cut, is_silent
from .onsets import detect_onsets

CLASSES = sorted(SOUNDS)
SILENT = "silence"

RANGE = 40.0  # dB: levels further below the loudest band are raised to this
ACTIVE = 20.0  # dB: frames further below the loudest one are left out
SHRINKAGE = 0.05  # of the covariance towards a multiple of the identity


class SoundClassifier:
    """
    Linear discriminant analysis of log-mel statistics.

    The features of a sound are the mean, standard deviation and maximum over time of the level of each of 64 bands,
    relative to the loudest band, over the frames within 20 dB of the loudest one. These 192 numbers depend neither on
    the level of the sound nor on its length. The covariance within classes is shrunk by 5 % towards a multiple of the
    identity (Friedman, "Regularized discriminant analysis", 1989).

    Args:
        sounds: Sounds to train on for each class, as [`~bench.features.preprocess`] returns them; the same number for
            each class.
    """

    def __init__(self, sounds: dict[str, list[np.ndarray]]):
        self.classes = sorted(sounds)
        features = np.array([[_features(sound) for sound in sounds[name]] for name in self.classes])
        means = features.mean(axis=1)  # [classes, D]
        within = (features - means[:, None]).reshape(-1, means.shape[1])
        covariance = within.T @ within / len(within)
        mean_variance = np.trace(covariance) / len(covariance)
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean_variance * np.eye(len(covariance))
        self.weights = np.linalg.solve(covariance, means.T)  # [D, classes]
        self.offsets = -0.5 * (means.T * self.weights).sum(axis=0)

    def classify(self, sound: np.ndarray) -> str:
        """Return the class of a preprocessed sound, or "silence" for silence."""
        if is_silent(sound):
            return SILENT
        return self.classes[int(np.argmax(_features(sound) @ self.weights + self.offsets))]

    def detect_events(self, sound: np.ndarray) -> list[tuple[str, float]]:
        """Return the class and the onset in seconds of each event. An event lasts until the next onset."""
        onsets = detect_onsets(sound)
        ends = [*onsets[1:], len(sound) / RATE]
        events = [(self.classify(cut(sound, start, end)), start) for start, end in zip(onsets, ends)]
        return [(name, start) for name, start in events if name != SILENT]


def _features(sound: np.ndarray) -> np.ndarray:
    """Return the features of a preprocessed sound, shape `[192]`."""
    levels = band_levels(sound)
    loudest = levels.amax(dim=0)
    levels = (levels[:, loudest >= loudest.max() - ACTIVE] - loudest.max()).clamp(min=-RANGE)
    return torch.cat((levels.mean(dim=1), levels.std(dim=1, correction=0), levels.amax(dim=1))).double().numpy()


def train_classifier(render: Callable[[str, int], np.ndarray], count: int = 30, seed: int = 0) -> SoundClassifier:
    """
    Train a classifier of the scenes' classes on augmented sounds.

    Args:
        render: Returns a preprocessed sound for a class and a number from 0 to `count - 1`.
        count: Number of sounds for each class.
        seed: Seed of the augmentation.
    """
    rng = np.random.default_rng(seed)
    return SoundClassifier({name: [augment(render(name, index), rng) for index in range(count)] for name in CLASSES})
