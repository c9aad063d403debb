"""When sounds begin, and how well that agrees with when they should."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F

from .hearing import HOP, band_levels, cut, is_silent

TOLERANCE = 0.1  # seconds that an onset may be off by

RANGE = 35.0  # dB below the loudest band of a clip, down to which sound counts
LOUD_ENOUGH = -20.0  # dB, and at least this, as `band_levels` counts: what is at the threshold of silence, in one band
LOOK_BACK = 0.23  # seconds, longer than the rests within the song of a bird
RISE_FRAMES = 3  # that a rise may take: the window of the spectrogram is four long
BAND_RADIUS = 2  # bands from which sound may have come, in a sweep
RISING_BANDS = 4  # of 64, the ones that rise most: a pure tone rises in no more
THRESHOLD = 9.0  # dB
APART = 0.1  # seconds between two onsets, at least


def detect_onsets(sound: np.ndarray) -> list[float]:
    """
    When something begins that was not heard before.

    In the manner of SuperFlux (Boeck and Widmer, "Maximum filter vibrato suppression for onset detection", 2013) the
    level of each band is compared with the highest that it and its neighbours had in the last 0.23 s, so that neither
    sweeps nor trills begin anything. Something begins where the four bands that rise most do so by 9 dB on average and
    by more than at any time within 0.1 s, unless the 0.1 s that follow are silent.

    Args:
        sound: as [`~bench.hearing.listen`] gives it, `[samples]` at 16 kHz.

    Returns:
        Seconds, rising: when half of each rise is reached.
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
    """dB `[frames]` by which the level rises, as [`detect_onsets`] tells."""
    levels = band_levels(sound)
    floor = max(levels.max().item() - RANGE, LOUD_ENOUGH)
    levels = levels.clamp(min=floor)
    back = round(LOOK_BACK / HOP)
    before = F.max_pool1d(levels.T[None], 2 * BAND_RADIUS + 1, stride=1, padding=BAND_RADIUS)[0].T
    before = F.pad(before, (back, 0), value=floor)
    before = F.max_pool1d(before[None], back - RISE_FRAMES + 1, stride=1)[0, :, : levels.shape[1]]
    rises = (levels - before).clamp(min=0)
    return rises.topk(RISING_BANDS, dim=0).values.mean(dim=0).numpy()


def count_hits(found: Sequence[float], true: Sequence[float]) -> int:
    """How many pairs of a found and a true onset, each in one pair at most, are within 0.1 s of each other."""
    found, true = sorted(found), sorted(true)
    hits = i = j = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= TOLERANCE + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return hits


def onset_f1(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """
    F1 of onsets within 0.1 s, over all clips together: `2 hits / (found + true)`.

    Args:
        pairs: the found and the true onsets of each clip, in seconds.

    Returns:
        0 to 1; 1 if there is nothing to find and nothing was found.
    """
    total = sum(len(found) + len(true) for found, true in pairs)
    return 2 * sum(count_hits(found, true) for found, true in pairs) / total if total else 1.0
