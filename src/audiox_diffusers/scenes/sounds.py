"""
Synthesis of the sounds of scenes.

Each sound is a function of `(rng, seconds, sampling_rate)` that returns mono samples `[samples]` at any level;
`make_sound` normalizes it. `rng` varies the pitch and other parameters. All sounds start without delay, and differ below
8 kHz.
"""

from collections.abc import Sequence

import numpy as np

LOWEST_SAMPLING_RATE = 16000

# Partials of a bell: frequency ratios, levels and relative lengths from J.-C. Risset, "An Introductory Catalogue of
# Computer Synthesized Sounds" (1969), no. 430, without the two detuned copies of the lowest partials.
BELL_RATIOS = (0.56, 0.92, 1.19, 1.70, 2.00, 2.74, 3.00, 3.76, 4.07)
BELL_LEVELS = (1.0, 1.0, 2.67, 1.67, 1.46, 1.33, 1.33, 1.0, 1.33)
BELL_LENGTHS = (1.0, 0.65, 0.325, 0.35, 0.25, 0.2, 0.15, 0.1, 0.075)

ATTACK, RELEASE = 0.001, 0.02  # seconds


def make_sound(
    sound: str,
    rng: np.random.Generator,
    seconds: float,
    sampling_rate: int,
    recordings: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """
    Return a sound with smooth ends.

    Args:
        sound: Key of `SOUNDS`.
        rng: Source of the variation.
        seconds: Length in seconds.
        sampling_rate: Sampling rate in Hz, at least 16000.
        recordings: Mono recordings `[samples]` at this rate. If given, `rng` picks one instead of a synthesised sound;
            recordings of lasting sounds are repeated.

    Returns:
        Mono float32 `[round(seconds * sampling_rate)]` with a peak of 1.
    """
    if recordings is None:
        waveform = SOUNDS[sound](rng, seconds, sampling_rate)
    else:
        waveform = _play(recordings, rng, round(seconds * sampling_rate), repeat=sound in LASTING)
    attack, release = round(ATTACK * sampling_rate), round(RELEASE * sampling_rate)
    steps = np.arange(1, len(waveform) + 1)
    waveform = waveform * np.minimum(1, steps / attack) * np.minimum(1, steps[::-1] / release)
    return (waveform / np.abs(waveform).max()).astype(np.float32)


def bell(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """Inharmonic partials; higher ones decay faster."""
    time = _times(seconds, sampling_rate)
    pitch = rng.uniform(1050, 1150)
    partials = zip(BELL_RATIOS, BELL_LEVELS, BELL_LENGTHS)
    return sum(
        level * np.sin(2 * np.pi * pitch * ratio * time) * np.exp(-time / (0.35 * length))
        for ratio, level, length in partials
    )


def drum(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """A decaying sine that falls from three times its pitch, with a click."""
    time = _times(seconds, sampling_rate)
    pitch, fall = rng.uniform(50, 65), 0.03
    phase = pitch * (time + 2 * fall * (1 - np.exp(-time / fall)))
    click = rng.standard_normal(len(time)) * np.exp(-time / 0.002)
    return np.sin(2 * np.pi * phase) * np.exp(-time / 0.12) + 0.2 * click


def clap(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """Three bursts of noise around 1.2 kHz; the last one decays more slowly."""
    time = _times(seconds, sampling_rate)
    gap = rng.uniform(0.009, 0.012)
    bursts = sum(np.exp(-(time - n * gap) / (0.03 if n == 2 else 0.003)) * (time >= n * gap) for n in range(3))
    return _band_of_noise(rng, len(time), sampling_rate, centre=1200, octaves=0.5) * bursts


def beep(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """A steady tone with one overtone."""
    time = _times(seconds, sampling_rate)
    phase = 2 * np.pi * rng.uniform(1900, 2100) * time
    return np.sin(phase) + 0.1 * np.sin(3 * phase)


def rain(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """A broad hiss with drops."""
    count = round(seconds * sampling_rate)
    hiss = _band_of_noise(rng, count, sampling_rate, centre=4500, octaves=1.2)
    time = _times(0.006, sampling_rate)
    for _ in range(round(40 * seconds)):
        start, level, pitch = rng.uniform(0, seconds), rng.uniform(1, 3), rng.uniform(2500, 6000)
        where = slice(round(start * sampling_rate), round(start * sampling_rate) + len(time))
        drop = level * np.sin(2 * np.pi * pitch * time) * np.exp(-time / 0.0015)
        hiss[where] += drop[: len(hiss[where])]
    return hiss


def siren(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """A tone that sweeps between about 550 and 1150 Hz."""
    time = _times(seconds, sampling_rate)
    rate, centre, swing = rng.uniform(1.0, 1.5), rng.uniform(820, 880), 300
    phase = 2 * np.pi * centre * time - swing / rate * np.sin(2 * np.pi * rate * time)
    return np.sin(phase) + 0.15 * np.sin(2 * phase)


def bird(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """Repeated chirps that fall from 5.5 kHz."""
    period, length = rng.uniform(0.15, 0.2), 0.09
    top, depth = rng.uniform(5300, 5700), rng.uniform(2000, 2400)
    time = _times(seconds, sampling_rate) % period
    part = np.minimum(time / length, 1)
    phase = 2 * np.pi * length * (top * part - depth * part**2 / 2)
    return np.sin(phase) * np.minimum(1, time / 0.003) * (1 - part)


def engine(rng: np.random.Generator, seconds: float, sampling_rate: int) -> np.ndarray:
    """A low buzz of smooth pulses, with harmonics up to about 1 kHz."""
    time = _times(seconds, sampling_rate)
    pitch, shake = rng.uniform(75, 95), rng.uniform(5, 7)
    phase = 2 * np.pi * pitch * time + 0.8 * np.sin(2 * np.pi * shake * time)
    pulses = np.exp(20 * (np.cos(phase) - 1))
    return pulses - pulses.mean()


IMPACTS = {"bell": bell, "drum": drum, "clap": clap, "beep": beep}
LASTING = {"rain": rain, "siren": siren, "bird": bird, "engine": engine}
SOUNDS = IMPACTS | LASTING


def _times(seconds: float, sampling_rate: int) -> np.ndarray:
    return np.arange(round(seconds * sampling_rate)) / sampling_rate


def _band_of_noise(
    rng: np.random.Generator, count: int, sampling_rate: int, centre: float, octaves: float
) -> np.ndarray:
    """Return noise of unit variance with a Gaussian spectrum over octaves around `centre` in Hz."""
    # The FFT is fast for powers of two.
    size = 1 << (count - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    distance = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / sampling_rate), 1) / centre) / octaves
    noise = np.fft.irfft(spectrum * np.exp(-(distance**2) / 2))[:count]
    return noise / noise.std()


def _play(waveforms: Sequence[np.ndarray], rng: np.random.Generator, count: int, repeat: bool) -> np.ndarray:
    """Return `count` samples of a recording picked by `rng`; a short one is repeated or padded with zeros."""
    waveform = waveforms[rng.integers(len(waveforms))]
    if repeat:
        return np.resize(waveform, count)
    return np.pad(waveform[:count], (0, max(0, count - len(waveform))))
