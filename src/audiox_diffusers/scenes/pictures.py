"""
Shapes of the sounds in the pictures of scenes.

A shape is a function of `(x, y, time)` that returns which points belong to it. `x` (to the right) and `y` (down) are
arrays of coordinates from -1 to 1 across the shape's cell; `time` is in seconds since the start of the sound.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BACKGROUND = (24, 24, 26)  # not black: AudioX takes zeros for a missing video

FLASH = 0.15  # seconds that the flash of an impact takes to fade
GLOW = 0.3  # opacity after the flash, until the sound ends


class Look(NamedTuple):
    shape: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    colour: tuple[int, int, int]


def _bell(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A trapezoid, wider at the bottom, with a clapper."""
    body = (abs(y) < 0.6) & (abs(x) < 0.5 + 0.35 * y)
    return body | (np.hypot(x, y - 0.7) < 0.15)


def _drum(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    return np.hypot(x, y) < 0.8


def _clap(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A star with eight rays."""
    return np.hypot(x, y) < 0.5 + 0.4 * np.cos(8 * np.arctan2(y, x))


def _beep(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) < 0.65


def _rain(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """Falling streaks in columns."""
    column = np.floor(x / 0.3)
    streak = abs(x / 0.3 - column - 0.5) < 0.25
    return streak & ((y - 2.5 * time + 0.37 * column) % 0.6 < 0.35) & (np.maximum(abs(x), abs(y)) < 0.9)


def _siren(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A ring with a rotating beam."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    beam = np.cos(angle - 4 * math.pi * time) > 0.7
    return (radius < 0.9) & ((radius > 0.7) | beam)


def _bird(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """Two flapping wings."""
    middle = -0.6 * math.cos(7 * math.pi * time) * (abs(x) - 0.4)
    return (abs(y - middle) < 0.16) & (abs(x) < 0.9)


def _engine(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A rotating gear with six teeth."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + 3 * time
    return (radius < 0.65 + 0.25 * (np.cos(6 * angle) > 0)) & (radius > 0.3)


LOOKS = {
    "bell": Look(_bell, (250, 205, 50)),
    "drum": Look(_drum, (225, 45, 45)),
    "clap": Look(_clap, (245, 245, 240)),
    "beep": Look(_beep, (60, 220, 90)),
    "rain": Look(_rain, (70, 140, 250)),
    "siren": Look(_siren, (240, 80, 220)),
    "bird": Look(_bird, (60, 225, 225)),
    "engine": Look(_engine, (245, 135, 30)),
}


def flash(time: float) -> float:
    """Return the opacity of an impact `time` seconds after its start."""
    return max(1 - (1 - GLOW) * time / FLASH, GLOW)


def cells(size: int, side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the coordinates `(x, y)` of all pixels of a square picture relative to each of `side * side` cells."""
    across = (2 * np.arange(size) + 1) / size * side - 1  # -1 to 1 in the first cell, 1 to 3 in the second
    return [(across[None] - 2 * column, across[:, None] - 2 * row) for row in range(side) for column in range(side)]


def draw(picture: np.ndarray, sound: str, cell: tuple[np.ndarray, np.ndarray], time: float, opacity: float) -> None:
    """Draw the shape of a sound into a picture, uint8 `[height, width, 3]`, in place."""
    look = LOOKS[sound]
    points = look.shape(*cell, time)
    picture[points] = np.round(np.multiply(BACKGROUND, 1 - opacity) + np.multiply(look.colour, opacity))
