"""Scenes: sound, video, picture and caption of known events."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from helpers import tone
from torchaudio.functional import melscale_fbanks

from audiox_diffusers.media import MediaError, load_audio, load_video, save_audio
from audiox_diffusers.scenes import (
    IMPACTS,
    LASTING,
    SOUNDS,
    Event,
    Scene,
    load_recordings,
    random_scene,
    write_scenes,
)

SOUND_NAMES = sorted(SOUNDS)
START, DURATION = 0.53, 0.4
BACKGROUND = (24, 24, 26)


def single(sound: str, seed: int = 0) -> Scene:
    return Scene([Event(sound, START, DURATION)], 1.2, seed)


def changed_frames(frames: np.ndarray) -> np.ndarray:
    """Return the numbers of the frames that differ from the first one, which is empty."""
    return np.flatnonzero((frames != frames[0]).any(axis=(1, 2, 3)))


def onset(waveform: np.ndarray, sampling_rate: int, threshold: float) -> float:
    """Return the time in seconds of the first sample above `threshold` of the peak."""
    level = np.abs(waveform)
    return int(np.argmax(level > threshold * level.max())) / sampling_rate


def test_sounds_are_impacts_or_lasting():
    assert set(SOUNDS) == {*IMPACTS, *LASTING} and not set(IMPACTS) & set(LASTING)
    assert len(SOUNDS) == 8


def test_rendering_is_reproducible():
    first, second = random_scene(3), random_scene(3)
    assert first == second and first.caption() == second.caption()
    for make in ("audio", "frames", "picture"):
        assert getattr(first, make)().tobytes() == getattr(second, make)().tobytes()


@pytest.mark.parametrize("sound", SOUND_NAMES)
def test_seeds_differ(sound):
    assert not np.array_equal(single(sound, 0).audio(), single(sound, 1).audio())
    pictures = {single(sound, seed).picture().tobytes() for seed in range(8)}
    assert len(pictures) > 1, "the place of the shape depends on the seed"


def test_pitch_does_not_depend_on_the_start():
    """Otherwise a model could infer the start of a sound from its pitch."""

    def pitch(seed: int) -> int:
        return np.abs(np.fft.rfft(Scene([Event("beep", 0, 0.5)], 0.5, seed).audio()[0])).argmax()

    starts = [random_scene(seed, max_events=1).events[0].start for seed in range(60)]
    assert abs(np.corrcoef(starts, [pitch(seed) for seed in range(60)])[0, 1]) < 0.4  # 3 standard deviations


def test_shortest_event_is_audible():
    for sound in SOUND_NAMES:
        assert np.abs(Scene([Event(sound, 0.1, 0.05)], 0.2, 0).audio()).max() == pytest.approx(0.6), sound


def test_random_scenes_differ():
    scenes = [random_scene(seed) for seed in range(20)]
    assert len({str(scene.events) for scene in scenes}) == 20
    assert {len(scene.events) for scene in scenes} == {1, 2, 3, 4}
    assert len({event.sound for scene in scenes for event in scene.events}) > 5


@pytest.mark.parametrize("sampling_rate", [16000, 44100])
@pytest.mark.parametrize("sound", SOUND_NAMES)
def test_sound_lasts_from_start_to_end(sound, sampling_rate):
    audio = single(sound).audio(sampling_rate)
    assert audio.dtype == np.float32 and audio.shape == (1, round(1.2 * sampling_rate))
    assert onset(audio[0], sampling_rate, 0.05) == pytest.approx(START, abs=0.005)
    sounding = np.flatnonzero(audio[0])
    assert sounding[0] >= round(START * sampling_rate)
    assert sounding[-1] < round(START * sampling_rate) + round(DURATION * sampling_rate)
    if sound in LASTING:
        last = audio[0, round((START + 0.6 * DURATION) * sampling_rate) : sounding[-1]]
        assert np.abs(last).max() > 0.2, "a lasting sound is audible near its end"


@pytest.mark.parametrize("sound", SOUND_NAMES)
def test_shape_is_visible_from_start_to_end(sound):
    frames = single(sound).frames(fps=25, size=64)
    assert frames.dtype == np.uint8 and frames.shape == (30, 64, 64, 3)
    # 0.53 s lies between frames 13 and 14, 0.93 s between 23 and 24.
    assert changed_frames(frames).tolist() == list(range(14, 24))
    assert frames.min() > 0, "zeros mean a missing video"


def test_start_at_the_time_of_a_frame():
    frames = Scene([Event("beep", 0.28, 0.28)], 1.0, 0).frames(fps=25)  # 0.28 * 25 is a little more than 7
    assert changed_frames(frames).tolist() == list(range(7, 14))


@pytest.mark.parametrize("sound", sorted(IMPACTS))
def test_impact_flashes_and_fades(sound):
    frames = single(sound).frames().astype(int)
    light = np.abs(frames - frames[0]).sum(axis=(1, 2, 3))[14:24]
    assert (light[:3] > light[1:4]).all(), "the flash fades from the first frame on"
    assert light[0] > 2 * light[3] and (light[3:] == light[3]).all(), "the glow is steady after 150 ms"


@pytest.mark.parametrize("fps", [5, 25])
@pytest.mark.parametrize("sound", sorted(LASTING))
def test_lasting_shape_moves(sound, fps):
    frames = Scene([Event(sound, 0, 2)], 2.0, 0).frames(fps)
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all()


def test_every_event_is_visible_at_5_fps():
    """5 fps is the frame rate of AudioX."""
    for scene in (random_scene(seed, seconds) for seed in range(20) for seconds in (2.0, 4.0)):
        for event in scene.events:
            frames = Scene([event], scene.seconds, 0).frames(fps=5, size=32)
            assert (frames != BACKGROUND).any(), event


def test_level():
    peaks = [np.abs(random_scene(seed).audio()).max() for seed in range(20)]
    assert 0.3 < min(peaks) and max(peaks) < 1


def test_overlapping_sounds_do_not_clip():
    scene = Scene([Event("beep", 0.1, 0.5)] * 4, 1.0, 0)
    assert np.abs(scene.audio()).max() == pytest.approx(0.9)


def test_channels_are_equal():
    scene = random_scene(0)
    mono, stereo = scene.audio(), scene.audio(channels=2)
    assert stereo.shape == (2, 64000)
    assert np.array_equal(stereo[0], mono[0]) and np.array_equal(stereo[1], mono[0])


def test_events_are_cut_off_at_the_end():
    whole, cut = (Scene([Event("siren", 0.5, 1.0)], seconds, 0) for seconds in (1.5, 1.0))
    assert np.array_equal(cut.audio(), whole.audio()[:, :16000])
    assert np.array_equal(cut.frames(), whole.frames()[:25])


def test_classes_sound_different():
    """A nearest-template classifier on mean log-mel spectra recognizes the classes."""
    mel = melscale_fbanks(257, 0.0, 8000.0, n_mels=40, sample_rate=16000)

    def spectrum(sound: str, seed: int) -> torch.Tensor:
        start, stop = round(START * 16000), round((START + DURATION) * 16000)
        waveform = torch.from_numpy(single(sound, seed).audio()[0, start:stop])
        power = torch.stft(waveform, 512, window=torch.hann_window(512), return_complex=True).abs() ** 2
        return (power.T @ mel + 1e-3).log().mean(dim=0)

    templates = torch.stack(
        [torch.stack([spectrum(sound, seed) for seed in range(100, 105)]).mean(dim=0) for sound in SOUND_NAMES]
    )
    right = [
        SOUND_NAMES[(templates - spectrum(sound, seed)).norm(dim=1).argmin()] == sound
        for sound in SOUND_NAMES
        for seed in range(10)
    ]
    assert np.mean(right) > 0.95


def test_classes_look_different():
    scene = Scene([Event(sound, 0, 1) for sound in SOUND_NAMES], 1.0, 0)
    picture = scene.picture(96)
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) == 9, "eight shapes, each in its colour, and the background"
    assert counts.min() > 50 and picture.min() > 0

    shapes = {tuple(map(tuple, (Scene([Event(sound, 0, 1)], 1.0, 0).picture() > 30).any(-1))) for sound in SOUNDS}
    assert len(shapes) == 8


def test_picture_has_shapes_at_the_same_places_as_frames():
    scene = Scene([Event("bell", 0, 0.5), Event("drum", 0.5, 0.5)], 1.0, 0)
    picture, frames = scene.picture(), scene.frames(fps=2)
    assert np.array_equal(picture, frames.max(axis=0))


@pytest.mark.parametrize(
    ("events", "caption"),
    [
        ([("bell", 0), ("bell", 1), ("bell", 2), ("rain", 3)], "three bell strikes, then rain"),
        ([("rain", 3), ("drum", 0), ("clap", 1)], "a drum beat, then a clap, then rain"),
        ([("beep", 0), ("siren", 1), ("beep", 2)], "a beep, then a siren, then a beep"),
        ([("bird", 0), ("bird", 1), ("engine", 2)], "two birds singing, then an engine"),
        ([("clap", k / 4) for k in range(12)], "12 claps"),
        ([], "silence"),
    ],
)
def test_caption_has_counts_and_order(events, caption):
    assert Scene([Event(sound, start, 0.2) for sound, start in events], 4.0, 0).caption() == caption


def test_random_scenes_respect_the_arguments():
    for seed in range(50):
        scene = random_scene(seed, seconds=2.0, max_events=3, classes=["drum", "bird"])
        assert scene.seconds == 2.0 and scene.seed == seed
        assert 1 <= len(scene.events) <= 3
        assert {event.sound for event in scene.events} <= {"drum", "bird"}
        ends = [event.start + event.duration for event in scene.events]
        assert all(event.duration > 0 for event in scene.events)
        assert all(end < event.start for end, event in zip(ends, scene.events[1:]))
        assert ends[-1] <= 2.0
    assert len(random_scene(0, seconds=0.5).events) == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Scene([Event("gong", 0, 1)], 4.0, 0), "events.*'gong'"),
        (lambda: Scene([Event("bell", 4.0, 1)], 4.0, 0), "events.*start"),
        (lambda: Scene([Event("bell", 0, 0)], 4.0, 0), "duration"),
        (lambda: Scene([Event("bell", 0, 0.001)], 4.0, 0), "duration.*0.05.*0.001"),
        (lambda: Scene([], 0, 0), "seconds"),
        (lambda: Scene([], 0.001, 0), "seconds.*0.05.*0.001"),
        (lambda: Scene([], 4.0, -1), "seed"),
        (lambda: random_scene(-1), "seed"),
        (lambda: random_scene(0, max_events=0), "max_events"),
        (lambda: random_scene(0, seconds=0.4), "seconds"),
        (lambda: random_scene(0, classes=["gong"]), "classes.*'gong'"),
        (lambda: random_scene(0, classes=[]), "classes"),
        (lambda: random_scene(0).audio(sampling_rate=8000), "sampling_rate.*16000.*8000"),
        (lambda: random_scene(0).audio(channels=0), "channels"),
        (lambda: random_scene(0).frames(fps=0), "fps"),
        (lambda: random_scene(0).picture(size=0), "size"),
    ],
)
def test_wrong_arguments_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "new" / "set", count=3, seed=1, seconds=2.0)


def read_metadata(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_written_folder_loads(written):
    rows = list(load_dataset(str(written), split="train", streaming=True).decode(False))
    assert [set(row) for row in rows] == [{"video", "caption", "events"}] * 3
    for row, line in zip(rows, read_metadata(written)):
        assert row["video"]["path"] == str(written / line["file_name"])
        assert row["caption"] == line["caption"]
        events = [Event(**event) for event in row["events"]]
        assert Scene(events, 2.0, 0).caption() == row["caption"]


def test_written_files_contain_their_events(written):
    for line in read_metadata(written):
        path = written / line["file_name"]
        waveform, sampling_rate = load_audio(path)
        assert sampling_rate == 16000 and waveform.shape[0] == 1
        assert waveform.shape[1] / sampling_rate == pytest.approx(2.0, abs=0.07)
        frames = load_video(path, fps=25, duration=None).permute(0, 2, 3, 1).numpy()
        assert frames.shape == (50, 96, 96, 3)
        quiet = np.full(50, True)
        for event in line["events"]:
            start, stop = event["start"], event["start"] + event["duration"]
            sound = waveform[0, int(max(start - 0.05, 0) * 16000) : int(stop * 16000)].numpy()
            assert onset(sound, 16000, 0.2) == pytest.approx(min(start, 0.05), abs=0.01)
            times = np.arange(50) / 25
            visible = (times >= start - 1e-6) & (times < stop - 1e-6)
            assert (np.abs(frames[visible].astype(int) - BACKGROUND).max(axis=(1, 2, 3)) > 30).all()
            quiet &= ~visible
        assert quiet.any()
        assert (np.abs(frames[quiet].astype(int) - BACKGROUND).max(axis=(1, 2, 3)) < 15).all()


def test_a_larger_count_adds_scenes_and_another_seed_changes_them(written, tmp_path):
    captions = [line["caption"] for line in read_metadata(written)]
    events = [line["events"] for line in read_metadata(written)]
    longer = read_metadata(write_scenes(tmp_path / "longer", count=4, seed=1, seconds=2.0, fps=5, size=32))
    assert [line["events"] for line in longer[:3]] == events and [line["caption"] for line in longer[:3]] == captions
    other = read_metadata(write_scenes(tmp_path / "other", count=3, seed=2, seconds=2.0, fps=5, size=32))
    assert not any(line["events"] in events for line in other)


def test_written_folder_respects_the_arguments(tmp_path):
    (tmp_path / "set").mkdir()
    folder = write_scenes(tmp_path / "set", 2, seconds=1.0, sampling_rate=44100, fps=10, size=32, classes=["beep"])
    assert {event["sound"] for line in read_metadata(folder) for event in line["events"]} == {"beep"}
    assert load_audio(folder / "00001.mp4")[1] == 44100
    assert load_video(folder / "00001.mp4", fps=10, duration=None).shape == (10, 3, 32, 32)


def test_nothing_is_written_on_an_error(tmp_path):
    with pytest.raises(ValueError, match="classes"):
        write_scenes(tmp_path / "set", 1, classes=["gong"])
    with pytest.raises(ValueError, match="count"):
        write_scenes(tmp_path / "set", 0)
    assert not any(tmp_path.iterdir())


def test_existing_files_are_not_overwritten(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(FileExistsError, match=target.name):
            write_scenes(target, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_command(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scenes", *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module("audiox_diffusers.scenes", run_name="__main__")
        return exit.value.code

    folder = str(tmp_path / "set")
    assert run(folder, "--count", "2", "--seconds", "1", "--seed", "7") == 0
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert names == ["00000.mp4", "00001.mp4", "metadata.jsonl"]
    assert "2 scenes" in capsys.readouterr().out
    assert run(folder, "--count", "2") == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.fixture
def recordings_folder(tmp_path):
    """Create recordings: a bell that is a tone of 300 Hz after silence, and two rains, tones of 500 and 700 Hz."""
    folder = tmp_path / "recorded"
    (folder / "rain").mkdir(parents=True)
    bell = torch.cat((torch.zeros(4000), tone(0.5, frequency=300, level=0.2)))
    save_audio(folder / "bell.wav", bell, 16000)
    for name, pitch in (("a.flac", 500), ("b.wav", 700)):
        save_audio(folder / "rain" / name, tone(0.5, frequency=pitch, level=0.9), 16000)
    (folder / ".hidden").touch()
    return folder


def pitch_of(waveform: np.ndarray) -> float:
    return np.abs(np.fft.rfft(waveform)).argmax() * 16000 / len(waveform)


def test_recordings_replace_their_class(recordings_folder):
    recordings = load_recordings(recordings_folder, 16000)
    assert {name: len(waveforms) for name, waveforms in recordings.items()} == {"bell": 1, "rain": 2}
    scene = Scene([Event("bell", 0.2, 0.3), Event("drum", 1.0, 0.4), Event("rain", 1.5, 2.0)], 4.0, 0)
    audio, plain = scene.audio(recordings=recordings)[0], scene.audio()[0]
    assert onset(audio, 16000, 0.05) == pytest.approx(0.2, abs=0.005), "leading silence is cut off"
    assert pitch_of(audio[3200:8000]) == pytest.approx(300, abs=5)
    assert np.abs(audio[3200:8000]).max() == pytest.approx(0.6, abs=1e-3)
    assert np.array_equal(audio[16000:24000], plain[16000:24000])
    rain = audio[24000:56000]
    assert pitch_of(rain) == pytest.approx(500, abs=5) or pitch_of(rain) == pytest.approx(700, abs=5)
    assert np.abs(rain[20000:30000]).max() > 0.5, "lasting sounds are repeated"
    long_bell = Scene([Event("bell", 0, 1.0)], 1.0, 0).audio(recordings=recordings)[0]
    assert not long_bell[8000:].any(), "impacts are not repeated"
    played = {
        round(pitch_of(Scene([Event("rain", 0, 1)], 1.0, seed).audio(recordings=recordings)[0]), -2)
        for seed in range(8)
    }
    assert played == {500, 700}


def test_recordings_are_written(recordings_folder, tmp_path):
    folder = write_scenes(tmp_path / "set", 1, seconds=1.0, fps=5, size=32, classes=["rain"], sounds=recordings_folder)
    (event,) = read_metadata(folder)[0]["events"][:1]
    waveform = load_audio(folder / "00000.mp4")[0][0].numpy()
    sound = waveform[int(event["start"] * 16000) + 800 :][:3200]
    assert pitch_of(sound) == pytest.approx(500, abs=6) or pitch_of(sound) == pytest.approx(700, abs=6)


def test_wrong_recordings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load_recordings(tmp_path / "missing", 16000)
    with pytest.raises(ValueError, match="contains no files or folders named after one of bell"):
        load_recordings(tmp_path, 16000)
    (tmp_path / "bell").mkdir()
    with pytest.raises(ValueError, match="bell: contains no files"):
        load_recordings(tmp_path, 16000)
    (tmp_path / "bell" / "a.wav").write_text("no sound")
    with pytest.raises(MediaError, match="a.wav"):
        load_recordings(tmp_path, 16000)
    save_audio(tmp_path / "bell" / "a.wav", np.zeros(800), 16000)
    with pytest.raises(ValueError, match="a.wav: is silent"):
        write_scenes(tmp_path / "set", 1, sounds=tmp_path)
    assert not (tmp_path / "set").exists()
    (tmp_path / "gong.wav").touch()
    (tmp_path / "bell" / "a.wav").unlink()
    save_audio(tmp_path / "bell" / "a.wav", np.ones(800) / 2, 16000)
    with pytest.raises(ValueError, match="gong.wav: must be named after one of bell"):
        load_recordings(tmp_path, 16000)
