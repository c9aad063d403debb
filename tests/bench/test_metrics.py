"""Metrics of the bench on synthetic sounds."""

import numpy as np
import pytest
from helpers import refused, tone

from audiox_diffusers.bench import SoundClassifier, detect_onsets, onset_f1
from audiox_diffusers.bench.features import RATE, frame_levels, is_silent, preprocess
from audiox_diffusers.bench.scores import accuracy, compare_with_others


def clicks(*times: float, seconds: float = 2.0, level: float = 0.5) -> np.ndarray:
    """Return bursts of noise of 30 ms at the given times."""
    sound = np.zeros(round(seconds * RATE), np.float32)
    burst = np.random.default_rng(0).uniform(-level, level, round(0.03 * RATE))
    for time in times:
        start = round(time * RATE)
        sound[start : start + len(burst)] += burst.astype(np.float32)
    return sound


def sine(frequency: float | np.ndarray, seconds: float = 2.0) -> np.ndarray:
    return tone(seconds, RATE, frequency).numpy()


@pytest.mark.parametrize("times", [(), (0.0,), (0.5,), (0.02, 0.4, 1.13, 1.9)])
@pytest.mark.parametrize("level", [0.5, 0.05])
def test_clicks_are_detected(times, level):
    assert detect_onsets(clicks(*times, level=level)) == pytest.approx(times, abs=0.025)


def test_a_tone_has_one_onset_with_and_without_noise():
    sound = sine(1000)
    sound[: round(0.7 * RATE)] = 0
    assert detect_onsets(sound) == pytest.approx([0.7], abs=0.025)
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    assert detect_onsets(sound + 0.001 * noise) == pytest.approx([0.7], abs=0.025)


def test_a_second_tone_is_detected_over_a_steady_one():
    sound = sine(300)
    sound[RATE:] += sine(3000)[RATE:]
    assert detect_onsets(sound) == pytest.approx([0.0, 1.0], abs=0.025)


def test_sweeps_and_trills_have_one_onset():
    time = np.arange(2 * RATE) / RATE
    assert len(detect_onsets(sine(850 + 300 * np.sin(2 * np.pi * 1.2 * time)))) == 1
    trill = sine(4000) * (time % 0.17 < 0.09)
    assert len(detect_onsets(trill.astype(np.float32))) == 1


def test_silence():
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    for sound in (np.zeros(RATE, np.float32), 0.003 * noise):  # -50 dB
        assert detect_onsets(sound) == [] and is_silent(sound)
    assert not is_silent(0.03 * noise)  # -30 dB
    brief = np.zeros(RATE, np.float32)
    brief[5000:5400] = 0.1
    assert not is_silent(brief)


def test_frame_levels_in_db_of_full_scale():
    square = np.full(round(0.12 * RATE), 0.1, np.float32)
    assert frame_levels(square) == pytest.approx([-20, -20, -20 + 10 * np.log10(0.4)], abs=1e-3)


def test_preprocess_to_mono_at_16_khz():
    stereo = np.stack((sine(440), np.zeros(2 * RATE, np.float32)))
    assert np.allclose(preprocess(stereo, RATE), 0.5 * sine(440), atol=1e-6)
    assert preprocess(np.zeros((2, 44100), np.float32), 44100).shape == (RATE,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_preprocess_refuses_non_finite_samples(value):
    sound = sine(440)[None].repeat(2, axis=0)
    sound[1, 7] = value
    with refused("NaN"):
        preprocess(sound, RATE)


@pytest.mark.parametrize(
    ("detected", "true", "f1"),
    [
        ([], [], 1.0),
        ([1.0], [], 0.0),
        ([], [1.0], 0.0),
        ([1.05, 2.0], [1.0, 2.0], 1.0),
        ([1.1], [1.0], 1.0),
        ([1.11], [1.0], 0.0),
        ([0.95, 1.05], [1.0], 2 / 3),  # only one of the two matches
        ([1.0], [0.95, 1.05], 2 / 3),
        ([1.0, 1.1], [0.92, 1.05], 1.0),
        ([3.0, 1.0], [1.0, 2.0], 0.5),
    ],
)
def test_onset_f1(detected, true, f1):
    assert onset_f1([(detected, true)]) == pytest.approx(f1)


def test_onset_f1_over_all_clips():
    assert onset_f1([([1.0], [1.0]), ([], [1.0, 2.0, 3.0])]) == pytest.approx(2 / 5)


def test_chance_compares_with_other_items():
    score = accuracy(["a", "a", "b", "b"], ["a", "b", "b", "c"])
    assert (score.value, score.chance, score.count) == (0.5, 6 / 16, 4)
    score = compare_with_others(onset_f1, [[1.0], [2.0], [3.0]], [[1.0], [2.0], [1.0]])
    assert score.value == pytest.approx(2 / 3) and score.chance == pytest.approx(1 / 6)
    assert compare_with_others(onset_f1, [[1.0]], [[1.0]]).chance is None


def test_classifier_ignores_level_and_length():
    rng = np.random.default_rng(0)

    def example(low: float, high: float) -> np.ndarray:
        gain, length = rng.uniform(0.05, 0.5), rng.integers(4000, 30000)
        noise = 1e-3 * rng.standard_normal(length)
        return (gain * sine(rng.uniform(low, high))[:length] + noise).astype(np.float32)

    bands = {"low": (200, 300), "middle": (900, 1200), "high": (3000, 4000)}
    classifier = SoundClassifier({name: [example(*band) for _ in range(12)] for name, band in bands.items()})
    for name, band in bands.items():
        assert [classifier.classify(example(*band)) for _ in range(5)] == [name] * 5
    assert classifier.classify(np.zeros(RATE, np.float32)) == "silence"
    both = np.concatenate((np.zeros(8000), sine(250, 0.5), np.zeros(8000), sine(3500, 0.5))).astype(np.float32)
    both += 1e-3 * rng.standard_normal(len(both)).astype(np.float32)
    events = classifier.detect_events(both)
    assert [name for name, _ in events] == ["low", "high"]
    assert [start for _, start in events] == pytest.approx([0.5, 1.5], abs=0.025)
