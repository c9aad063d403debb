"""Phrases of music for audiox-tiny, and the measures of music."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers import load_script

from audiox_diffusers.scenes.pictures import BACKGROUND

FOLDER = Path(__file__).resolve().parents[2] / "training" / "audiox_tiny"
RATE = 16000


@pytest.fixture(autouse=True, scope="module")
def scripts_find_each_other():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(FOLDER)
        yield


@pytest.fixture(scope="module")
def music():
    import music

    return music


@pytest.fixture(scope="module")
def measure():
    return load_script(FOLDER / "measure_music.py")


@pytest.fixture(scope="module")
def phrases(music):
    return [music.random_phrase(seed) for seed in range(400)]


def render(phrase) -> np.ndarray:
    """Render notes as decaying sines with two partials, `[samples]`."""
    sound = np.zeros(round(phrase.seconds * RATE))
    for note in phrase.notes:
        start = round(note.start * RATE)
        times = np.arange(min(round(note.duration * RATE), len(sound) - start)) / RATE
        frequency = 440 * 2 ** ((note.pitch - 69) / 12)
        wave = np.sin(2 * math.pi * frequency * times) + 0.3 * np.sin(4 * math.pi * frequency * times)
        sound[start : start + len(times)] += 0.2 * wave * np.exp(-3 * times)
    return sound.astype(np.float32)


def test_phrases_depend_on_the_seed_alone(music, phrases):
    assert [music.random_phrase(seed) for seed in range(400)] == phrases
    assert len({phrase.caption for phrase in phrases}) > 300


def test_phrases_have_all_families_and_kinds(music, phrases):
    assert {phrase.instruments[0].family for phrase in phrases} == set(music.FAMILIES)
    assert all(any(kind in phrase.caption.split() for phrase in phrases) for kind in music.KINDS)
    assert {len(phrase.instruments) for phrase in phrases} == {1, 2}


def test_held_out_instruments_are_heard_only_on_request(music, phrases):
    assert not any(instrument.held_out for phrase in phrases for instrument in phrase.instruments)
    others = [music.random_phrase(seed, held_out=True) for seed in range(100)]
    assert all(instrument.held_out for phrase in others for instrument in phrase.instruments)
    assert {phrase.instruments[0].family for phrase in others} == set(music.FAMILIES)


def test_notes_are_within_the_phrase_and_the_range(phrases):
    for phrase in phrases:
        assert phrase.notes and [note.start for note in phrase.notes] == sorted(note.start for note in phrase.notes)
        for note in phrase.notes:
            instrument = phrase.instruments[note.part]
            assert 0 <= note.start < phrase.seconds and note.duration > 0 and 1 <= note.velocity <= 127
            assert instrument.family == "drums" or instrument.lowest <= note.pitch <= instrument.highest


def test_captions_say_what_is_played(music, phrases):
    for phrase in phrases:
        assert all(instrument.name in phrase.caption for instrument in phrase.instruments)
        assert (f"at {phrase.tempo} bpm" in phrase.caption) == (phrase.tempo is not None)
        if phrase.tempo is not None:
            steps = np.array(phrase.onsets) * phrase.tempo / 30
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
        if phrase.key is not None:
            tonic, mode = phrase.key
            assert f"in {music.KEYS[tonic]} {mode}" in phrase.caption
            pitched = [note for note in phrase.notes if phrase.instruments[note.part].family != "drums"]
            assert {(note.pitch - tonic) % 12 for note in pitched} <= set(music.SCALES[mode])
            assert any((note.pitch - tonic) % 12 == 0 for note in pitched if note.start == 0)


def test_registers_are_apart(music, phrases):
    for name in ("flute", "cello", "piano", "trumpet"):
        means = {
            register: [
                np.mean([note.pitch for note in phrase.notes if note.part == 0])
                for phrase in map(music.random_phrase, range(3000))
                if phrase.register == register and phrase.instruments[0].name == name
            ]
            for register in ("low", "high")
        }
        assert np.mean(means["low"]) + 5 < np.mean(means["high"])


def test_videos_flash_when_notes_start(music):
    instrument = music.INSTRUMENTS[0]
    notes = (music.Note(0.4, 0.3, 60, 90), music.Note(1.0, 0.3, 72, 90))
    phrase = music.Phrase((instrument,), notes, 2.0, "two piano notes")
    frames = phrase.frames(fps=25, size=32)
    assert frames.shape == (50, 32, 32, 3) and frames.dtype == np.uint8
    shown = (frames != np.array(BACKGROUND, np.uint8)).any(axis=(1, 2, 3))
    assert list(np.flatnonzero(shown)) == [*range(10, 18), *range(25, 33)]
    bright = frames.max(axis=(1, 2, 3))
    assert bright[10] == bright[25] == max(music.COLOURS["piano"]) and bright[16] < bright[10] / 2
    rows = [np.flatnonzero((frames[index] != BACKGROUND).any(axis=(1, 2))).mean() for index in (10, 25)]
    assert rows[1] < rows[0]  # higher notes are shown higher
    assert (phrase.picture(32) == frames[10]).all()


@pytest.mark.parametrize("tempo", [70, 90, 100, 120, 150])
def test_tempo_of_known_notes(music, measure, tempo):
    beats = np.arange(0, 3.9, 60 / tempo)
    notes = tuple(music.Note(float(beat), 0.2, 69, 100) for beat in beats)
    phrase = music.Phrase((music.INSTRUMENTS[0],), notes, 4.0, "notes")
    assert measure.find_tempo(render(phrase)) == pytest.approx(tempo, rel=0.04)


@pytest.mark.parametrize("mode", ["major", "minor"])
@pytest.mark.parametrize("tonic", [0, 4, 7, 10])
def test_key_of_known_chords(music, measure, tonic, mode):
    scale = [60 + tonic + step for step in music.SCALES[mode]] + [72 + tonic + step for step in music.SCALES[mode]]
    notes = tuple(
        music.Note(0.5 * index, 0.5, scale[degree + step], 100)
        for index, degree in enumerate((0, 3, 4, 0, 0, 3, 4, 0))
        for step in (0, 2, 4)
    )
    phrase = music.Phrase((music.INSTRUMENTS[0],), notes, 4.0, "chords", key=(tonic, mode))
    assert measure.find_key(render(phrase)) == (tonic, mode)


def test_measures_of_silence(measure):
    silence = np.zeros(4 * RATE, np.float32)
    assert 60 <= measure.find_tempo(silence) <= 200
    assert measure.find_key(silence) == (0, "major")
