"""
Random phrases of music with sound, video, picture and caption.

Debian's `fluid-soundfont-gm` (Frank Wen, MIT licence) has the instruments, and FluidSynth plays them through
`pyfluidsynth`. On Debian: `apt-get install libfluidsynth3 fluid-soundfont-gm` and `pip install pyfluidsynth`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from audiox_diffusers.scenes.pictures import BACKGROUND, flash

SOUNDFONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"
DRUM_BANK, DRUM_CHANNEL = 128, 9
KICK, SNARE, CLOSED_HAT, OPEN_HAT, LOW_TOM, HIGH_TOM, CRASH = 36, 38, 42, 46, 45, 50, 49
PEAK = 0.8
FADE = 0.02  # seconds, at the cut end
TEMPOS = (70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 180)  # beats per minute
SLOW, FAST = 90, 140
KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
MOODS = {"major": ("happy", "cheerful"), "minor": ("sad", "gloomy")}
KINDS = ("note", "notes", "scale", "chords", "arpeggio", "melody")


@dataclass(frozen=True)
class Instrument:
    """
    A preset of the soundfont.

    Attributes:
        family: One of `FAMILIES`.
        name: Its name in captions.
        program: Number of the preset from 0, a drum kit for drums.
        lowest, highest: Range of the notes, as MIDI numbers.
        held_out: Whether no model is trained on it.
    """

    family: str
    name: str
    program: int
    lowest: int = 36
    highest: int = 84
    held_out: bool = False


INSTRUMENTS = (
    Instrument("piano", "piano", 0, 36, 91),
    Instrument("piano", "bright piano", 1, 36, 91),
    Instrument("piano", "electric piano", 4, 36, 84),
    Instrument("piano", "honky-tonk piano", 3, 36, 91, held_out=True),
    Instrument("mallets", "music box", 10, 60, 96),
    Instrument("mallets", "vibraphone", 11, 53, 89),
    Instrument("mallets", "marimba", 12, 48, 84),
    Instrument("mallets", "xylophone", 13, 65, 96),
    Instrument("mallets", "glockenspiel", 9, 67, 96, held_out=True),
    Instrument("organ", "organ", 16, 36, 84),
    Instrument("organ", "church organ", 19, 36, 84),
    Instrument("organ", "harmonica", 22, 60, 84),
    Instrument("organ", "accordion", 21, 53, 84, held_out=True),
    Instrument("guitar", "acoustic guitar", 24, 40, 79),
    Instrument("guitar", "steel guitar", 25, 40, 79),
    Instrument("guitar", "electric guitar", 27, 40, 81),
    Instrument("guitar", "jazz guitar", 26, 40, 79, held_out=True),
    Instrument("strings", "violin", 40, 55, 91),
    Instrument("strings", "cello", 42, 36, 69),
    Instrument("strings", "string orchestra", 48, 36, 84),
    Instrument("strings", "viola", 41, 48, 81, held_out=True),
    Instrument("brass", "trumpet", 56, 55, 82),
    Instrument("brass", "trombone", 57, 40, 70),
    Instrument("brass", "french horn", 60, 41, 74),
    Instrument("brass", "tuba", 58, 33, 60, held_out=True),
    Instrument("woodwind", "flute", 73, 60, 93),
    Instrument("woodwind", "clarinet", 71, 50, 86),
    Instrument("woodwind", "saxophone", 65, 49, 80),
    Instrument("woodwind", "recorder", 74, 60, 91, held_out=True),
    Instrument("drums", "drums", 0),
    Instrument("drums", "rock drums", 16),
    Instrument("drums", "electronic drums", 24),
    Instrument("drums", "jazz drums", 32, held_out=True),
)
FAMILIES = tuple(dict.fromkeys(instrument.family for instrument in INSTRUMENTS))
COLOURS = {
    "piano": (235, 235, 245),
    "mallets": (250, 205, 50),
    "organ": (160, 90, 240),
    "guitar": (245, 135, 30),
    "strings": (200, 60, 60),
    "brass": (240, 230, 120),
    "woodwind": (70, 200, 170),
    "drums": (110, 130, 250),
}


@dataclass(frozen=True)
class Note:
    """A note: start and duration in seconds, MIDI number, velocity from 1 to 127, and index of its instrument."""

    start: float
    duration: float
    pitch: int
    velocity: int
    part: int = 0


@dataclass(frozen=True)
class Phrase:
    """
    Music that can be rendered as sound, video and picture.

    Attributes:
        instruments: One instrument, or two that play together.
        notes: Notes, in order of their starts.
        seconds: Length in seconds.
        caption: Text that describes it.
        tempo: Beats per minute if the caption says it.
        key: Tonic from 0 (C) to 11 and `"major"` or `"minor"` if the caption says it.
        register: `"low"` or `"high"` if the caption says it.
    """

    instruments: tuple[Instrument, ...]
    notes: tuple[Note, ...]
    seconds: float
    caption: str
    tempo: int | None = None
    key: tuple[int, str] | None = None
    register: str | None = None

    @cached_property
    def onsets(self) -> list[float]:
        """Starts of notes in seconds. Notes of a chord have one start."""
        return sorted({note.start for note in self.notes})

    def frames(self, fps: float = 25, size: int = 96) -> np.ndarray:
        """Render the video, uint8 `[seconds * fps, size, size, 3]`: a disc in the colour of the family flashes."""
        frames = []
        for index in range(max(1, round(self.seconds * fps))):
            time = index / fps
            frames.append(self._picture(self.sounding(time), time, size))
        return np.stack(frames)

    def sounding(self, time: float) -> list[Note]:
        """Return the notes that sound at a time in seconds, each for at least 0.1 s."""
        return [note for note in self.notes if note.start <= time < note.start + max(note.duration, 0.1)]

    def picture(self, size: int = 96) -> np.ndarray:
        """Render a still, uint8 `[size, size, 3]`: the first note of each instrument as it starts."""
        firsts = {note.part: note for note in reversed(self.notes)}
        return self._picture(list(firsts.values()), None, size)

    def _picture(self, notes: Sequence[Note], time: float | None, size: int) -> np.ndarray:
        picture = np.full((size, size, 3), BACKGROUND, np.uint8)
        place = (2 * np.arange(size) + 1) / size - 1
        for note in sorted(notes, key=lambda note: note.start):
            instrument = self.instruments[note.part]
            height = 0.7 * (1 - 2 * (note.pitch - 30) / 70)
            across = 0.45 * (2 * note.part - 1) if len(self.instruments) > 1 else 0
            disc = np.hypot(place[None] - across, place[:, None] - height) < 0.3
            opacity = 1 if time is None else flash(time - note.start)
            colour = np.multiply(BACKGROUND, 1 - opacity) + np.multiply(COLOURS[instrument.family], opacity)
            picture[disc] = np.round(colour)
        return picture


class Player:
    """Plays phrases with a soundfont."""

    def __init__(self, sampling_rate: int = 16000, soundfont: str = SOUNDFONT):
        import fluidsynth

        self.sampling_rate = sampling_rate
        self.synth = fluidsynth.Synth(gain=0.5, samplerate=sampling_rate)
        self.font = self.synth.sfload(soundfont)
        if self.font == -1:
            raise FileNotFoundError(f"{soundfont}: no such soundfont; Debian has it as fluid-soundfont-gm")

    def play(self, phrase: Phrase) -> np.ndarray:
        """Render a phrase as mono float32 `[1, samples]` with a peak of 0.8."""
        self.synth.system_reset()
        channels = []
        for part, instrument in enumerate(phrase.instruments):
            drums = instrument.family == "drums"
            channels.append(DRUM_CHANNEL if drums else part)
            self.synth.program_select(channels[-1], self.font, DRUM_BANK if drums else 0, instrument.program)
        events = []
        for note in phrase.notes:
            events.append((note.start + note.duration, 0, note))
            events.append((note.start, 1, note))
        pieces, position = [], 0
        for time, on, note in sorted(events, key=lambda event: event[:2]):
            sample = min(round(time * self.sampling_rate), round(phrase.seconds * self.sampling_rate))
            if sample > position:
                pieces.append(self.synth.get_samples(sample - position))
                position = sample
            if on:
                self.synth.noteon(channels[note.part], note.pitch, note.velocity)
            else:
                self.synth.noteoff(channels[note.part], note.pitch)
        rest = round(phrase.seconds * self.sampling_rate) - position
        if rest > 0:
            pieces.append(self.synth.get_samples(rest))
        sound = np.concatenate(pieces).reshape(-1, 2).mean(1).astype(np.float32)
        fade = round(FADE * self.sampling_rate)
        sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        return PEAK * sound[None] / max(np.abs(sound).max(), 1)


def random_phrase(seed: int, seconds: float = 4.0, held_out: bool = False) -> Phrase:
    """
    Return a random phrase.

    Args:
        seed: Random seed, 0 or more.
        seconds: Length in seconds.
        held_out: Whether to use the instruments that no model is trained on.
    """
    rng = np.random.default_rng([seed, 7])
    chosen = [instrument for instrument in INSTRUMENTS if instrument.held_out == held_out]
    family = FAMILIES[rng.integers(len(FAMILIES))]
    first = _choose(rng, [instrument for instrument in chosen if instrument.family == family])
    tempo = int(_choose(rng, TEMPOS))
    if family == "drums":
        notes = _drum_pattern(rng, tempo, seconds, 0)
        says_tempo = rng.random() < 0.6
        words = f"{_speed(rng, tempo, says_tempo)}{first.name}"
        kind = _choose(rng, ("", " pattern", " playing"))
        caption = f"{words}{kind}" + (f" at {tempo} bpm" if says_tempo else "")
        return Phrase((first,), tuple(notes), seconds, caption, tempo if says_tempo else None)
    return _pitched_phrase(rng, first, [each for each in chosen if each.family != family], tempo, seconds)


def _pitched_phrase(
    rng: np.random.Generator, first: Instrument, others: list[Instrument], tempo: int, seconds: float
) -> Phrase:
    key = int(rng.integers(12)), str(_choose(rng, tuple(SCALES)))
    kind = _choose(rng, KINDS)
    register = _choose(rng, ("low", "high", None, None))
    notes = _notes(rng, kind, _scale(first, key, register), tempo, seconds)

    says_tempo = kind != "note" and rng.random() < 0.4
    says_key = kind not in ("note", "notes") and rng.random() < 0.4
    mood = (
        _choose(rng, MOODS[key[1]]) if kind not in ("note", "notes") and not says_key and rng.random() < 0.4 else None
    )
    speed = _speed(rng, tempo, says_tempo).strip() if kind != "note" else ""
    name = " ".join(word for word in (speed, mood, register, first.name) if word)
    caption = f"{name} {kind}" if kind in ("chords", "notes") else f"{_article(name)} {kind}"
    if says_key:
        caption += f" in {KEYS[key[0]]} {key[1]}"
    instruments = [first]
    if kind != "note" and rng.random() < 0.25:
        second = _choose(rng, others)
        instruments.append(second)
        if second.family == "drums":
            notes += _drum_pattern(rng, tempo, seconds, 1)
            caption += f" with {second.name}"
        else:
            chords = _notes(rng, "chords", _scale(second, key, None), tempo, seconds)
            notes += [replace(note, velocity=note.velocity - 15, part=1) for note in chords]
            caption += f" with {second.name} chords"
    if says_tempo:
        caption += f" at {tempo} bpm"
    return Phrase(
        tuple(instruments),
        tuple(sorted(notes, key=lambda note: note.start)),
        seconds,
        caption,
        tempo if says_tempo else None,
        key if says_key else None,
        register,
    )


def _choose(rng: np.random.Generator, values: Sequence):
    return values[rng.integers(len(values))]


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _speed(rng: np.random.Generator, tempo: int, exact: bool) -> str:
    if exact or rng.random() < 0.5:
        return ""
    return "slow " if tempo <= SLOW else "fast " if tempo >= FAST else ""


@dataclass(frozen=True)
class _Scale:
    """Notes of a scale in a register of an instrument, and the index of a tonic among them."""

    pitches: list[int]
    tonic: int

    def chord(self, degree: int) -> list[int]:
        """Return the three notes of the chord on a degree of the scale."""
        root = min(self.tonic + degree, len(self.pitches) - 5)
        return self.pitches[root : root + 5 : 2]


def _scale(instrument: Instrument, key: tuple[int, str], register: str | None) -> _Scale:
    """Return the notes in a register: the lowest or highest third of the range, but at least an octave and a half."""
    low, high = instrument.lowest, instrument.highest
    third = max((high - low) // 3, 19)
    if register == "low":
        high = low + third
    elif register == "high":
        low = high - third
    else:
        low, high = low + (high - low) // 6, high - (high - low) // 6
    pitches = [pitch for pitch in range(low, high + 1) if (pitch - key[0]) % 12 in SCALES[key[1]]]
    return _Scale(pitches, next(index for index, pitch in enumerate(pitches) if pitch % 12 == key[0]))


def _notes(rng: np.random.Generator, kind: str, scale: _Scale, tempo: int, seconds: float) -> list[Note]:
    beat = 60 / tempo
    beats = [float(time) for time in np.arange(0, seconds - 0.05, beat)]
    velocity = int(rng.integers(75, 115))
    if kind == "note":
        start = float(_choose(rng, (0.0, 0.0, 0.3)))
        return [Note(start, float(rng.uniform(0.8, seconds - start)), int(_choose(rng, scale.pitches)), velocity)]
    if kind == "notes":
        pitch, count = int(_choose(rng, scale.pitches)), int(rng.integers(2, 6))
        return [Note(time, 0.8 * beat, pitch, velocity) for time in beats[:count]]
    if kind == "scale":
        up = scale.pitches[scale.tonic : scale.tonic + 8]
        falls = rng.random() < 0.5 and len(up) == 8
        line = up[::-1] + up[1:] if falls else up + up[-2::-1]
        starts = np.arange(0, seconds - 0.05, beat / 2)
        return [Note(float(time), 0.45 * beat, pitch, velocity) for time, pitch in zip(starts, line)]
    if kind == "chords":
        degrees = _choose(rng, ((0, 3, 4, 0), (0, 4, 0, 4), (0, 0, 3, 0), (0, 5, 3, 4)))
        return [
            Note(time, 1.8 * beat, pitch, velocity - 10)
            for index, time in enumerate(beats[::2])
            for pitch in scale.chord(degrees[index % 4])
        ]
    if kind == "arpeggio":
        root, third, fifth = scale.chord(0)
        starts = np.arange(0, seconds - 0.05, beat / 2)
        return [
            Note(float(time), 0.48 * beat, (root, third, fifth, third)[index % 4], velocity)
            for index, time in enumerate(starts)
        ]
    # A melody: a walk on the scale in beats and half beats, from the tonic and back to it in each bar.
    notes, time, place = [], 0.0, scale.tonic
    while time < seconds - 0.1:
        length = beat * float(_choose(rng, (0.5, 0.5, 1, 1, 1, 2)))
        if time // (4 * beat) != (time - beat) // (4 * beat):
            place = scale.tonic
        notes.append(Note(time, 0.9 * length, scale.pitches[place], velocity + int(rng.integers(-8, 9))))
        place = int(np.clip(place + _choose(rng, (-2, -1, -1, 1, 1, 2, 2, 4)), 0, len(scale.pitches) - 1))
        time += length
    return notes


def _drum_pattern(rng: np.random.Generator, tempo: int, seconds: float, part: int) -> list[Note]:
    beat = 60 / tempo
    hat = _choose(rng, (CLOSED_HAT, CLOSED_HAT, OPEN_HAT))
    eighths, fill = rng.random() < 0.7, rng.random() < 0.3
    notes = []
    for index in range(math.ceil((seconds - 0.05) / (beat / 2))):
        time = index * beat / 2
        if eighths or index % 2 == 0:
            notes.append(Note(time, 0.1, hat, 80, part))
        if index % 4 == 0:
            notes.append(Note(time, 0.1, KICK, 115, part))
        elif index % 4 == 2:
            notes.append(Note(time, 0.1, SNARE, 110, part))
        elif fill and index % 8 in (5, 7):
            notes.append(Note(time, 0.1, int(_choose(rng, (LOW_TOM, HIGH_TOM, KICK))), 95, part))
    if rng.random() < 0.3:
        notes.append(Note(0.0, 0.5, CRASH, 90, part))
    return sorted(notes, key=lambda note: note.start)
