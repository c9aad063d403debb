"""The ears of the bench, on sounds that are built by hand."""

import numpy as np
import pytest

from audiox_diffusers.bench import SoundClassifier, detect_onsets, onset_f1
from audiox_diffusers.bench.hearing import RATE, is_silent, listen, moment_levels
from audiox_diffusers.bench.scores import against_others, share_right


def clicks(*times: float, seconds: float = 2.0, level: float = 0.5) -> np.ndarray:
    """Bursts of noise of 30 ms."""
    sound = np.zeros(round(seconds * RATE), np.float32)
    burst = np.random.default_rng(0).uniform(-level, level, round(0.03 * RATE))
    for time in times:
        start = round(time * RATE)
        sound[start : start + len(burst)] += burst.astype(np.float32)
    return sound


def tone(frequency: float | np.ndarray, seconds: float = 2.0) -> np.ndarray:
    steps = np.broadcast_to(2 * np.pi * frequency / RATE, round(seconds * RATE))
    return (0.5 * np.sin(np.cumsum(steps))).astype(np.float32)


@pytest.mark.parametrize("times", [(), (0.0,), (0.5,), (0.02, 0.4, 1.13, 1.9)])
@pytest.mark.parametrize("level", [0.5, 0.05])
def test_clicks_are_heard_when_they_sound(times, level):
    assert detect_onsets(clicks(*times, level=level)) == pytest.approx(times, abs=0.025)


def test_a_tone_begins_once_also_under_noise():
    sound = tone(1000)
    sound[: round(0.7 * RATE)] = 0
    assert detect_onsets(sound) == pytest.approx([0.7], abs=0.025)
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    assert detect_onsets(sound + 0.001 * noise) == pytest.approx([0.7], abs=0.025)


def test_a_second_sound_is_heard_through_a_steady_one():
    sound = tone(300)
    sound[RATE:] += tone(3000)[RATE:]
    assert detect_onsets(sound) == pytest.approx([0.0, 1.0], abs=0.025)


def test_neither_sweeps_nor_trills_begin_anything():
    time = np.arange(2 * RATE) / RATE
    assert len(detect_onsets(tone(850 + 300 * np.sin(2 * np.pi * 1.2 * time)))) == 1
    trill = tone(4000) * (time % 0.17 < 0.09)
    assert len(detect_onsets(trill.astype(np.float32))) == 1


def test_silence_has_no_onsets_and_is_silent():
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    for sound in (np.zeros(RATE, np.float32), 0.003 * noise):  # -50 dB
        assert detect_onsets(sound) == [] and is_silent(sound)
    assert not is_silent(0.03 * noise)  # -30 dB
    brief = np.zeros(RATE, np.float32)
    brief[5000:5400] = 0.1
    assert not is_silent(brief)


def test_levels_are_those_of_full_scale():
    square = np.full(round(0.12 * RATE), 0.1, np.float32)
    assert moment_levels(square) == pytest.approx([-20, -20, -20 + 10 * np.log10(0.4)], abs=1e-3)


def test_sounds_are_heard_as_mono_at_one_rate():
    stereo = np.stack((tone(440), np.zeros(2 * RATE, np.float32)))
    assert np.allclose(listen(stereo, RATE), 0.5 * tone(440), atol=1e-6)
    assert listen(np.zeros((2, 44100), np.float32), 44100).shape == (RATE,)
    with pytest.raises(ValueError, match="NaN"):
        listen(np.full((1, 100), np.nan, np.float32), RATE)


@pytest.mark.parametrize(
    ("found", "true", "f1"),
    [
        ([], [], 1.0),
        ([1.0], [], 0.0),
        ([], [1.0], 0.0),
        ([1.05, 2.0], [1.0, 2.0], 1.0),
        ([1.1], [1.0], 1.0),
        ([1.11], [1.0], 0.0),
        ([0.95, 1.05], [1.0], 2 / 3),  # only one of the two is a hit
        ([1.0], [0.95, 1.05], 2 / 3),
        ([1.0, 1.1], [0.92, 1.05], 1.0),
        ([3.0, 1.0], [1.0, 2.0], 0.5),
    ],
)
def test_f1_of_onsets(found, true, f1):
    assert onset_f1([(found, true)]) == pytest.approx(f1)


def test_f1_counts_all_clips_together():
    assert onset_f1([([1.0], [1.0]), ([], [1.0, 2.0, 3.0])]) == pytest.approx(2 / 5)


def test_chance_is_that_of_the_others_answers():
    score = share_right(["a", "a", "b", "b"], ["a", "b", "b", "c"])
    assert (score.value, score.chance, score.count) == (0.5, 6 / 16, 4)
    score = against_others(onset_f1, [[1.0], [2.0], [3.0]], [[1.0], [2.0], [1.0]])
    assert score.value == pytest.approx(2 / 3) and score.chance == pytest.approx(1 / 6)
    assert against_others(onset_f1, [[1.0]], [[1.0]]).chance is None


def test_classifier_tells_level_and_length_apart_from_timbre():
    rng = np.random.default_rng(0)

    def example(low: float, high: float) -> np.ndarray:
        gain, length = rng.uniform(0.05, 0.5), rng.integers(4000, 30000)
        noise = 1e-3 * rng.standard_normal(length)
        return (gain * tone(rng.uniform(low, high))[:length] + noise).astype(np.float32)

    bands = {"low": (200, 300), "middle": (900, 1200), "high": (3000, 4000)}
    classifier = SoundClassifier({name: [example(*band) for _ in range(12)] for name, band in bands.items()})
    for name, band in bands.items():
        assert [classifier.classify(example(*band)) for _ in range(5)] == [name] * 5
    assert classifier.classify(np.zeros(RATE, np.float32)) == "silence"
    both = np.concatenate((np.zeros(8000), tone(250, 0.5), np.zeros(8000), tone(3500, 0.5))).astype(np.float32)
    both += 1e-3 * rng.standard_normal(len(both)).astype(np.float32)
    heard = classifier.hear(both)
    assert [name for name, _ in heard] == ["low", "high"]
    assert [start for _, start in heard] == pytest.approx([0.5, 1.5], abs=0.025)
