"""
The shapes of scenes: what each sound looks like.

A shape is a function `(x, y, time)` to booleans: which points belong to it. `x` (to the right) and `y` (down) are arrays
of coordinates that run from -1 to 1 across the shape's cell, `time` is in seconds since the sound began.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BACKGROUND = (24, 24, 26)  # not black: to AudioX, zeros are a video that is missing

FLASH = 0.15  # seconds that an impact flashes for
GLOW = 0.3  # opacity after the flash, while the sound goes on


class Look(NamedTuple):
    shape: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    colour: tuple[int, int, int]


def _bell(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A trapezium that widens downwards, with a clapper."""
    body = (abs(y) < 0.6) & (abs(x) < 0.5 + 0.35 * y)
    return body | (np.hypot(x, y - 0.7) < 0.15)


def _drum(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    return np.hypot(x, y) < 0.8


def _clap(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A star of eight rays."""
    return np.hypot(x, y) < 0.5 + 0.4 * np.cos(8 * np.arctan2(y, x))


def _beep(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) < 0.65


def _rain(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """Streaks that fall, each column from another height."""
    column = np.floor(x / 0.3)
    streak = abs(x / 0.3 - column - 0.5) < 0.25
    return streak & ((y - 2.5 * time + 0.37 * column) % 0.6 < 0.35) & (np.maximum(abs(x), abs(y)) < 0.9)


def _siren(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A ring with a beam that turns."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    beam = np.cos(angle - 4 * math.pi * time) > 0.7
    return (radius < 0.9) & ((radius > 0.7) | beam)


def _bird(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """Two wings that beat, as a bird is drawn from afar."""
    middle = -0.6 * math.cos(7 * math.pi * time) * (abs(x) - 0.4)
    return (abs(y - middle) < 0.16) & (abs(x) < 0.9)


def _engine(x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
    """A gear with six teeth that turns."""
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
    """Opacity of an impact `time` seconds after it began."""
    return max(1 - (1 - GLOW) * time / FLASH, GLOW)


def cells(size: int, side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Coordinates `(x, y)` of all pixels of a square picture, in each of the `side * side` cells it is divided into."""
    across = (2 * np.arange(size) + 1) / size * side - 1  # -1 to 1 in the first cell, 1 to 3 in the second
    return [(across[None] - 2 * column, across[:, None] - 2 * row) for row in range(side) for column in range(side)]


def draw(picture: np.ndarray, sound: str, cell: tuple[np.ndarray, np.ndarray], time: float, opacity: float) -> None:
    """Draw the shape of a sound into a uint8 `[height, width, 3]` picture, in place."""
    look = LOOKS[sound]
    points = look.shape(*cell, time)
    picture[points] = np.round(np.multiply(BACKGROUND, 1 - opacity) + np.multiply(look.colour, opacity))
