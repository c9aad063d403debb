"""Onset detection, and its F1."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F

from .features import HOP, band_levels, cut, is_silent

TOLERANCE = 0.1  # seconds between a detected and a true onset that match

RANGE = 35.0  # dB: levels further below the loudest band of a clip are raised to this
FLOOR = -20.0  # dB of `band_levels`, at least: the level of one band at the threshold of silence
LOOK_BACK = 0.23  # seconds, longer than the rests within the song of a bird
RISE_FRAMES = 3  # length of a rise: the window of the spectrogram is four frames long
BAND_RADIUS = 2  # bands to either side that a sweep may have come from
RISING_BANDS = 4  # of 64, those that rise most: a pure tone rises in no more
THRESHOLD = 9.0  # dB
APART = 0.1  # seconds between two onsets, at least


def detect_onsets(sound: np.ndarray) -> list[float]:
    """
    Detect the onsets of a sound.

    As in SuperFlux (Boeck and Widmer, "Maximum filter vibrato suppression for onset detection", 2013), the level of
    each band is compared with the maximum of the band and its neighbours over the last 0.23 s, so that sweeps and
    trills cause no onsets. An onset is a local maximum within 0.1 s of the mean rise of the four bands that rise most,
    above 9 dB, unless the following 0.1 s are silent.

    Args:
        sound: Sound as [`~bench.features.preprocess`] returns it, shape `[samples]`.

    Returns:
        Times in seconds at which half of each rise is reached, in ascending order.
    """
    rise = _rises(sound)
    radius = round(APART / HOP)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(rise, radius), 2 * radius + 1)
    onsets: list[float] = []
    for peak in np.flatnonzero((rise > THRESHOLD) & (rise == around.max(axis=1))):
        first = peak
        while first > 0 and rise[first - 1] > rise[peak] / 2:
            first -= 1
        onset = float(first * HOP)
        apart = not onsets or onset - onsets[-1] > APART
        if apart and not is_silent(cut(sound, onset, onset + APART)):
            onsets.append(onset)
    return onsets


def _rises(sound: np.ndarray) -> np.ndarray:
    """Return the rise in level at each frame in dB, shape `[frames]`; see [`detect_onsets`]."""
    levels = band_levels(sound)
    floor = max(levels.max().item() - RANGE, FLOOR)
    levels = levels.clamp(min=floor)
    back = round(LOOK_BACK / HOP)
    before = F.max_pool1d(levels.T[None], 2 * BAND_RADIUS + 1, stride=1, padding=BAND_RADIUS)[0].T
    before = F.pad(before, (back, 0), value=floor)
    before = F.max_pool1d(before[None], back - RISE_FRAMES + 1, stride=1)[0, :, : levels.shape[1]]
    rises = (levels - before).clamp(min=0)
    return rises.topk(RISING_BANDS, dim=0).values.mean(dim=0).numpy()


def count_hits(detected: Sequence[float], true: Sequence[float]) -> int:
    """Return the maximum number of disjoint pairs of a detected and a true onset within 0.1 s of each other."""
    detected, true = sorted(detected), sorted(true)
    hits = i = j = 0
    while i < len(detected) and j < len(true):
        if abs(detected[i] - true[j]) <= TOLERANCE + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif detected[i] < true[j]:
            i += 1
        else:
            j += 1
    return hits


def onset_f1(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """
    Return the F1 of onsets within 0.1 s over all clips together: `2 hits / (detected + true)`.

    Args:
        pairs: Detected and true onsets of each clip, in seconds.

    Returns:
        A number from 0 to 1; 1 if there are neither detected nor true onsets.
    """
    total = sum(len(detected) + len(true) for detected, true in pairs)
    return 2 * sum(count_hits(detected, true) for detected, true in pairs) / total if total else 1.0
