"""Scenes that the demo and the page of the server use as examples."""

import numpy as np

from .scene import Event, Scene

VIDEO = Scene(
    [Event("drum", 0.4, 0.4), Event("drum", 1.2, 0.4), Event("bell", 2.0, 1.0), Event("bell", 3.0, 1.0)], 4.0, seed=1
)
PICTURE = Scene([Event("siren", 0.0, 4.0)], 4.0, seed=2)
SOUND = Scene([Event("engine", 0.0, 4.0)], 4.0, seed=3)
# Start and end of the gap in seconds.
GAP = (1.5, 2.5)
FPS, SIZE = 25, 192


def sound_with_gap(rate: int, channels: int) -> np.ndarray:
    """Return the waveform of `SOUND`, `[channels, samples]`, silent during `GAP`."""
    waveform = SOUND.audio(rate, channels)
    first, last = (round(second * rate) for second in GAP)
    waveform[:, first:last] = 0
    return waveform
