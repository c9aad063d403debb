"""Scenes: events at known times, with sound, video, picture and caption."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..media.files import check_positive, check_sampling_rate
from .pictures import BACKGROUND, cells, draw, flash
from .recordings import Recordings
from .sounds import IMPACTS, LOWEST_SAMPLING_RATE, SOUNDS, make_sound

# (one, many)
WORDS = {
    "bell": ("a bell strike", "bell strikes"),
    "drum": ("a drum beat", "drum beats"),
    "clap": ("a clap", "claps"),
    "beep": ("a beep", "beeps"),
    "rain": ("rain", "showers of rain"),
    "siren": ("a siren", "sirens"),
    "bird": ("a bird singing", "birds singing"),
    "engine": ("an engine", "engines"),
}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# Maximum duration of an impact in seconds. All are longer than a frame at AudioX's 5 fps.
IMPACT_SECONDS = {"bell": 1.0, "drum": 0.4, "clap": 0.25, "beep": 0.25}

EVENT_PEAK, SCENE_PEAK = 0.6, 0.9
EVENTS_PER_SECOND = 2  # at most, in random scenes
SHORTEST = 0.05  # seconds, enough for attack and release

# Independent streams of random numbers. None is 0, because NumPy treats `[seed, 0]` as `seed`, which draws the events.
SOUND_STREAM, PLACE_STREAM = 1, 2


@dataclass(frozen=True)
class Event:
    """
    A sound with start and duration.

    Attributes:
        sound: Key of `SOUNDS`.
        start: Start in seconds.
        duration: Duration in seconds, at least 0.05.
    """

    sound: str
    start: float
    duration: float


@dataclass(frozen=True)
class Scene:
    """
    Events that can be rendered as sound, video and picture. The result depends on the attributes alone, and on
    recordings if given.

    Attributes:
        events: Events. They may overlap; they are cut off at the end of the scene.
        seconds: Length in seconds, at least 0.05.
        seed: Seed of the pitch of each sound, of noise and of the places of the shapes; 0 or more.

    Raises:
        ValueError: If an attribute is out of range, or an event does not start within the scene.
    """

    events: Sequence[Event]
    seconds: float
    seed: int

    def __post_init__(self):
        _check_length("seconds", self.seconds)
        check_seed(self.seed)
        check_classes("events", [event.sound for event in self.events])
        for event in self.events:
            _check_length("duration", event.duration)
            if not 0 <= event.start < self.seconds:
                raise ValueError(f"`events` must start within the {self.seconds} s of the scene, got {event}")

    def audio(self, sampling_rate: int = 16000, channels: int = 1, recordings: Recordings | None = None) -> np.ndarray:
        """
        Render the sound. The first sample of an event is `round(start * sampling_rate)`.

        Args:
            sampling_rate: Sampling rate in Hz, at least 16000.
            channels: Number of channels, all with the same sound.
            recordings: Recordings at this rate that replace synthesised sounds; see [`load_recordings`].

        Returns:
            Float32 `[channels, round(seconds * sampling_rate)]`. The peak of an event is 0.6, and that of the scene at
            most 0.9.

        Raises:
            ValueError: If `sampling_rate` or `channels` is out of range.
        """
        if check_sampling_rate("sampling_rate", sampling_rate) < LOWEST_SAMPLING_RATE:
            raise ValueError(f"`sampling_rate` must be at least {LOWEST_SAMPLING_RATE} Hz, got {sampling_rate!r}")
        if channels < 1:
            raise ValueError(f"`channels` must be 1 or more, got {channels!r}")
        mix = np.zeros(round(self.seconds * sampling_rate), np.float32)
        for index, event in enumerate(self.events):
            rng = np.random.default_rng([self.seed, SOUND_STREAM, index])
            recorded = (recordings or {}).get(event.sound)
            sound = make_sound(event.sound, rng, event.duration, sampling_rate, recorded)
            start = round(event.start * sampling_rate)
            mix[start : start + len(sound)] += EVENT_PEAK * sound[: len(mix) - start]
        peak = np.abs(mix).max()
        if peak > SCENE_PEAK:
            mix *= SCENE_PEAK / peak
        return np.tile(mix, (channels, 1))

    def frames(self, fps: float = 25, size: int = 96) -> np.ndarray:
        """
        Render the video. Frame `k` shows the time `k / fps`; a shape is visible while its sound lasts. The shapes of
        impacts flash and fade within 150 ms to a glow; those of lasting sounds move. The background is dark grey.

        Args:
            fps: Frame rate.
            size: Height and width in pixels.

        Returns:
            RGB frames, uint8 `[max(1, round(seconds * fps)), size, size, 3]`.

        Raises:
            ValueError: If `fps` or `size` is out of range.
        """
        check_positive("fps", fps)
        places = self._places(size)
        frames = np.empty((max(1, round(self.seconds * fps)), size, size, 3), np.uint8)
        frames[:] = BACKGROUND
        for event in self.events:
            first = _frame_at(event.start, fps)
            last = min(_frame_at(event.start + event.duration, fps), len(frames))
            for index in range(first, last):
                time = max(index / fps - event.start, 0)
                opacity = flash(time) if event.sound in IMPACTS else 1
                draw(frames[index], event.sound, places[event.sound], time, opacity)
        return frames

    def picture(self, size: int = 96) -> np.ndarray:
        """
        Render a still with all shapes of the scene, at the same places as in `frames`.

        Args:
            size: Height and width in pixels.

        Returns:
            RGB picture, uint8 `[size, size, 3]`.

        Raises:
            ValueError: If `size` is out of range.
        """
        places = self._places(size)
        picture = np.full((size, size, 3), BACKGROUND, np.uint8)
        for sound, place in places.items():
            draw(picture, sound, place, time=0, opacity=1)
        return picture

    def caption(self) -> str:
        """Return a caption like "three bell strikes, then rain", or "silence" without events."""
        sounds = [event.sound for event in sorted(self.events, key=lambda event: event.start)]
        return ", then ".join(_count(sound, len(list(group))) for sound, group in groupby(sounds)) or "silence"

    def _places(self, size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return a cell of the picture for each sound: one of 2 x 2, or of 3 x 3 if there are more than 4 sounds."""
        check_positive("size", size)
        sounds = sorted({event.sound for event in self.events})
        side = 2 if len(sounds) <= 4 else 3
        order = np.random.default_rng([self.seed, PLACE_STREAM]).permutation(side * side)
        grid = cells(size, side)
        return {sound: grid[cell] for sound, cell in zip(sounds, order)}


def random_scene(seed: int, seconds: float = 4.0, max_events: int = 4, classes: Sequence[str] | None = None) -> Scene:
    """
    Return a random scene of 1 to `max_events` events that do not overlap.

    Args:
        seed: Random seed, also that of the scene; 0 or more.
        seconds: Length in seconds, at least 0.5.
        max_events: Maximum number of events. There are also at most two per second.
        classes: Sounds to choose from, keys of `SOUNDS`; `None` for all.

    Returns:
        The scene. Starts and durations are multiples of 0.01 s.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_seed(seed)
    check_positive("seconds", seconds)
    most = min(max_events, math.floor(seconds * EVENTS_PER_SECOND))
    if most < 1:
        raise ValueError(
            f"`max_events` must be 1 or more and `seconds` at least {1 / EVENTS_PER_SECOND}, "
            f"got {max_events!r} and {seconds!r}"
        )
    classes = sorted(SOUNDS) if classes is None else list(classes)
    check_classes("classes", classes)
    if not classes:
        raise ValueError("`classes` is empty")

    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, most + 1))
    slot = seconds / count
    starts = [round(slot * (index + rng.uniform(0, 0.4)), 2) for index in range(count)]
    sound, events = None, []
    for start, end in zip(starts, [*starts[1:], seconds]):
        # Half of the events repeat the sound before, so that captions have counts.
        if sound is None or rng.random() < 0.5:
            sound = classes[rng.integers(len(classes))]
        room = 0.9 * (end - start)
        duration = min(room, IMPACT_SECONDS[sound]) if sound in IMPACTS else room * rng.uniform(0.75, 1)
        events.append(Event(sound, start, round(duration, 2)))
    return Scene(events, seconds, seed)


def check_classes(name: str, classes: Sequence[str]) -> None:
    """Raise `ValueError` if a class is unknown."""
    unknown = sorted(set(classes) - set(SOUNDS))
    if unknown:
        raise ValueError(f"`{name}` must be some of {', '.join(SOUNDS)}, got {', '.join(map(repr, unknown))}")


def check_seed(seed: int) -> None:
    """Raise `ValueError` if the seed is negative."""
    if seed < 0:
        raise ValueError(f"`seed` must be 0 or more, got {seed!r}")


def _check_length(name: str, seconds: float) -> None:
    check_positive(name, seconds)
    if seconds < SHORTEST:
        raise ValueError(f"`{name}` must be at least {SHORTEST} s, got {seconds!r}")


def _frame_at(time: float, fps: float) -> int:
    """Return the first frame at or after `time`, with tolerance for rounding: 0.28 * 25 is slightly more than 7."""
    return math.ceil(time * fps - 1e-6)


def _count(sound: str, number: int) -> str:
    one, many = WORDS[sound]
    if number == 1:
        return one
    return f"{NUMBERS[number - 2] if number - 2 < len(NUMBERS) else number} {many}"
