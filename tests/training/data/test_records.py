import io
import re
import struct
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data import decoding, records
from audiox_diffusers.training.data.bad_records import BadRecord
from audiox_diffusers.training.data.records import RecordReader
from audiox_diffusers.training.data.streaming import RowKey
from audiox_diffusers.training.data.windows import WindowSpec

SECONDS = 8.0
SPEC = WindowSpec(
    sampling_rate=8000,
    channels=1,
    hop_length=100,
    context_frames=2,
    window_samples=16000,
    prompt_samples=8000,
    video_fps=5.0,
    num_frames=10,
    frame_size=32,
    sync_fps=25.0,
    num_sync_frames=50,
    sync_size=16,
    sync_segment=4,
    sync_stride=2,
)
COLUMNS = {name: name for name in ("audio", "video", "image", "caption", "audio_prompt", "task", "start", "end")}
NO_DROPS = dict(drop_text_rate=0.0, drop_video_rate=0.0, drop_audio_rate=0.0)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, str]:
    """A sound whose level, and a video whose brightness, is proportional to the time."""
    folder = tmp_path_factory.mktemp("media")
    ramp = np.arange(int(SECONDS * 16000), dtype=np.float32) / 16000 / 10
    save_audio(folder / "ramp.wav", np.stack([ramp, ramp]), 16000)
    save_audio(folder / "short.wav", ramp[-8000:], 16000)
    save_audio(folder / "silent.wav", ramp * 0, 16000)
    levels = (20 + 25 * np.arange(int(SECONDS * 10)) / 10).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 48, 3))
    save_video(folder / "ramp.mp4", frames, np.stack([ramp, ramp]), 16000, fps=10)
    save_video(folder / "black.mp4", frames * 0, np.stack([ramp, ramp]), 16000, fps=10)
    (folder / "broken.mp4").write_bytes(b"this is no video")
    Image.new("RGB", (40, 20), (255, 0, 128)).save(folder / "red.png")
    return {path.name: str(path) for path in folder.iterdir()}


def reader(task=None, crop="start", columns=COLUMNS, **masking) -> RecordReader:
    weights = {} if task is None else {"task_weights": {task: 1.0}}
    return RecordReader(SPEC, [columns], MaskingConfig(**{**NO_DROPS, **weights, **masking}), crop, 1.0, seed=0)


def key(row=0, epoch=0) -> RowKey:
    return RowKey(0, epoch, 0, row)


def time_of(sample: torch.Tensor) -> float:
    return sample.item() * 10


def seconds_of(frames: torch.Tensor) -> list[float]:
    return [(level - 20) / 25 for level in frames.float().mean(dim=(1, 2, 3)).tolist()]


def test_the_window_starts_at_the_given_second(media):
    record = reader("inpainting").read(key(), {"audio": media["ramp.wav"], "start": 3.0})
    assert record.waveform.shape == (1, 16000)
    assert time_of(record.waveform[0, 8000]) == pytest.approx(4.0, abs=0.01)
    short = reader("inpainting").read(key(), {"audio": media["ramp.wav"], "start": 3.0, "end": 4.5})
    assert time_of(short.waveform[0, 11900]) == pytest.approx(4.4875, abs=0.02)
    assert not short.waveform[0, 12000:].any()


def test_video_covers_the_same_seconds(media):
    record = reader("video", crop="random").read(key(), {"video": media["ramp.mp4"]})
    start = time_of(record.waveform[0, 4000]) - 0.5
    assert 0 <= start <= SECONDS - 2
    assert record.video.frames.shape == (10, 3, 32, 32) and record.video.frames.dtype == torch.uint8
    assert record.video.sync_frames.shape == (50, 3, 16, 16)
    # A frame lasts a tenth of a second, and the codec rounds its level.
    for rate, frames in ((5, record.video.frames), (25, record.video.sync_frames)):
        for index, second in enumerate(seconds_of(frames)):
            assert second == pytest.approx(start + index / rate - 0.05, abs=0.15)


def write_flashes(path, video_start: float, audio_start: float, gap: tuple[float, float] = (0.0, 0.0)) -> str:
    """Write 6 s of flashes and clicks at every full second of the file's clock. The gap has no sound packets."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=25), container.add_stream("pcm_s16le", rate=16000)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        for index in range(round(video_start * 25), 150):
            level = 235 if index % 25 < 2 else 16
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for first in range(round(audio_start * 16000), 96000, 160):
            if gap[0] <= first / 16000 < gap[1]:
                continue
            samples = np.zeros((1, 160), np.int16) + (20000 if first % 16000 == 0 else 100)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.pts, frame.sample_rate, frame.time_base = first, 16000, Fraction(1, 16000)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return str(path)


def first_of(seconds: list[float]) -> list[float]:
    """Return the first of each group of neighbors."""
    return [second for index, second in enumerate(seconds) if index == 0 or second - seconds[index - 1] > 0.3]


@pytest.mark.parametrize(
    ("name", "video_start", "audio_start", "gap", "start", "expected"),
    [
        ("late_sound.mov", 0.0, 1.4, (0, 0), 1.5, [0.5, 1.5]),
        ("late_picture.mkv", 1.2, 0.0, (0, 0), 1.0, [1.0]),
        ("gap.mkv", 0.0, 0.0, (1.5, 2.5), 2.2, [0.8, 1.8]),
        ("gap.mov", 0.0, 0.0, (0.5, 1.5), 1.2, [0.8, 1.8]),
        ("late_clock.mkv", 0.52, 0.4, (0, 0), 0.0, [0.6, 1.6]),
        ("late_clock.nut", 0.4, 0.6, (0, 0), 1.0, [0.6, 1.6]),
    ],
)
def test_sound_and_video_share_one_timeline(tmp_path, name, video_start, audio_start, gap, start, expected):
    """Flashes and clicks that coincide in a player coincide in the record, whichever stream starts late or has a gap."""
    path = write_flashes(tmp_path / name, video_start, audio_start, gap)
    record = reader("video").read(key(), {"video": path, "start": start})
    clicks = first_of([index / 8000 for index in (record.waveform[0] > 0.2).nonzero().flatten().tolist()])
    bright = record.video.sync_frames.float().mean((1, 2, 3)) > 128
    flashes = first_of([index / 25 for index in bright.nonzero().flatten().tolist()])
    assert clicks[-len(expected) :] == pytest.approx(expected, abs=0.01)
    assert flashes == pytest.approx(expected, abs=0.03)


def test_random_crops_change_with_the_epoch_and_stay_inside(media):
    row = {"audio": media["ramp.wav"], "start": 1.0, "end": 5.0}
    starts = [time_of(reader(crop="random").read(key(epoch=epoch), row).waveform[0, 800]) - 0.1 for epoch in range(12)]
    assert len({round(start, 3) for start in starts}) == 12
    assert min(starts) > 0.99 and max(starts) < 3.01


def test_the_previous_sound_ends_where_the_window_begins(media):
    row = {"audio": media["ramp.wav"]}
    record = reader("completion", crop="random").read(key(), row)
    first, _ = record.window
    start = time_of(record.waveform[0, 4000]) - 0.5
    assert first == 8000 + 200, "an audio prompt and the sound that it depends on"
    assert time_of(record.sound[0, first - 400]) == pytest.approx(start - 0.05, abs=0.001)


def test_an_audio_prompt(media):
    row = {"audio": media["ramp.wav"], "audio_prompt": media["short.wav"]}
    record = reader("completion").read(key(), row)
    assert record.task_spec.audio == "previous"
    assert time_of(record.prompt[0, 2000]) == pytest.approx(SECONDS - 0.25, abs=0.02)
    assert not record.prompt[0, 4000:].any()


def test_an_image(media):
    record = reader("image").read(key(), {"audio": media["ramp.wav"], "image": media["red.png"]})
    assert record.image.frames.shape == (1, 3, 32, 32) and record.image.sync_frames.shape == (1, 3, 16, 16)
    assert record.image.frames[0, :, 5, 5].tolist() == [255, 0, 128]


@pytest.mark.parametrize(
    "caption, captions",
    [
        ("a ramp", ["a ramp"]),
        (["one", " ", None, "two"], ["one", "two"]),
        ([{"start": 0.0, "end": 2.0, "caption": "early"}, {"start": 4.0, "end": None, "caption": "late"}], ["late"]),
        ([{"start": 1.0, "end": 3.5, "caption": "a"}, {"start": 3.0, "end": 9.0, "caption": "b"}], ["a", "b"]),
        ("  ", []),
        (None, []),
    ],
)
def test_captions(media, caption, captions):
    """Captions that overlap the seconds 3 to 5 are used."""
    row = {"audio": media["ramp.wav"], "start": 3.0, "end": 5.0, "caption": caption}
    if not captions:
        with pytest.raises(BadRecord, match="task_weights"):
            reader("text").read(key(), row)
        return
    assert {reader("text").read(key(epoch=epoch), row).caption for epoch in range(12)} == set(captions)


def test_a_caption_is_drawn_from_several(media):
    row = {"audio": media["ramp.wav"], "caption": ["one", "two"]}
    drawn = [reader("text").read(key(epoch=epoch), row).caption for epoch in range(20)]
    assert set(drawn) == {"one", "two"}


def test_bytes_and_paths_give_the_same_record(media):
    def stored(name):
        with open(media[name], "rb") as file:
            return {"bytes": file.read(), "path": None}

    rows = (
        {"video": media["ramp.mp4"], "image": media["red.png"]},
        {"video": stored("ramp.mp4"), "image": stored("red.png")},
        {"video": {"path": media["ramp.mp4"], "bytes": None}, "image": stored("red.png")["bytes"]},
    )
    for task in ("video", "image"):
        first, *others = [reader(task, crop="random").read(key(), row) for row in rows]
        for other in others:
            assert torch.equal(other.waveform, first.waveform)
            assert torch.equal(getattr(other, task).frames, getattr(first, task).frames)


def test_dotted_columns(media):
    columns = {"audio": "wav", "caption": "json.caption"}
    row = {"wav": {"path": media["ramp.wav"], "bytes": None}, "json": {"caption": "a ramp"}}
    assert reader("text", columns=columns).read(key(), row).caption == "a ramp"


def test_only_what_is_needed_is_decoded(media):
    row = {"audio": media["ramp.wav"], "video": media["broken.mp4"], "caption": "a ramp"}
    record = reader("text").read(key(), row)
    assert record.video is None
    with pytest.raises(BadRecord, match="broken.mp4: not a sound or video file"):
        reader("video").read(key(), row)


def test_a_row_can_name_its_task(media):
    row = {"audio": media["ramp.wav"], "caption": "a ramp", "task": "inpainting"}
    record = reader("text").read(key(), row)
    assert record.task_spec.task == "inpainting" and record.task_spec.audio == "target"


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"caption": "x"}, "neither audio nor video"),
        ({"audio": "{short.wav}", "start": 0.2}, r"too short: 0\.30 s, needs 1 s"),
        ({"audio": "{ramp.wav}", "start": 7.5}, "too short: 0.50 s"),
        ({"audio": "{ramp.wav}", "start": 3.0, "end": 2.0}, "too short: 0.00 s"),
        ({"audio": "{ramp.wav}", "start": -1.0}, "`start` must be seconds"),
        ({"audio": "{ramp.wav}", "end": "late"}, "`end` must be seconds"),
        ({"audio": "{silent.wav}"}, "is silent"),
        ({"audio": "{broken.mp4}"}, "not a sound or video file"),
        ({"audio": "nowhere.wav"}, "nowhere.wav: no such file"),
        ({"audio": 7}, "`audio` must be a path or bytes, got int"),
        ({"audio": {"bytes": b"", "path": None}}, "is empty"),
        ({"audio": "{ramp.wav}", "caption": 7}, "`caption` must be text, got int: 7"),
        ({"audio": "{ramp.wav}", "caption": ["a", 7]}, "`caption` must be text, got int: 7"),
        (
            {"audio": {"path": "nofs://ramp.wav", "bytes": None}},
            r"nofs://ramp.wav: cannot be read \(ValueError: .*nofs",
        ),
        ({"audio": {"path": 7, "bytes": None}}, "`audio` must have a path that is text or bytes, got int"),
        ({"audio": {"path": None, "bytes": "text"}}, "`audio` must have a path that is text or bytes, got str"),
        (
            {"audio": "{ramp.wav}", "caption": [{"start": "soon", "end": 3.0, "caption": "a"}]},
            "`caption.start` must be seconds, 0 or more, got 'soon'",
        ),
        (
            {"audio": "{ramp.wav}", "caption": {"start": [0.0], "end": [3.0], "caption": ["a"]}},
            r"`caption.start` must be seconds, 0 or more, got \[0.0\]",
        ),
        (
            {"audio": "{ramp.wav}", "caption": [{"start": None, "end": True, "caption": "a"}]},
            "`caption.end` must be seconds, 0 or more, got True",
        ),
        ({"audio": "{ramp.wav}", "caption": "a \ud800"}, "`caption` must be valid Unicode, got 'a .ud800'"),
        ({"audio": "{ramp.wav}", "task": "sing"}, "'sing'"),
        ({"audio": "{ramp.wav}", "task": "video"}, "'video' needs video"),
        ({"audio": "{ramp.wav}", "video": "{black.mp4}", "task": "video"}, "black throughout"),
    ],
)
def test_bad_records(media, row, reason):
    def path(value):
        return media[value[1:-1]] if isinstance(value, str) and value.startswith("{") else value

    with pytest.raises(BadRecord, match=reason):
        reader().read(key(), {name: path(value) for name, value in row.items()})


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("decoder crashed\nat byte 3"),
        subprocess.CalledProcessError(1, "gs"),
        MemoryError(),
        OverflowError("too large"),
        struct.error("unpack requires 4 bytes"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        Image.DecompressionBombError("too many pixels"),
        RecursionError("nested too deep"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", ["load_image", "load_frames", "load_audio", "media_duration"])
def test_every_error_of_a_decoder_is_a_bad_record(media, monkeypatch, name, error):
    row = {"audio": media["ramp.wav"], "video": media["ramp.mp4"], "image": media["red.png"]}

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(records if name == "media_duration" else decoding, name, fail)
    with pytest.raises(BadRecord, match=re.escape((str(error) or type(error).__name__).splitlines()[0])):
        reader("image" if name == "load_image" else "video").read(key(), row)


def test_interrupts_are_not_bad_records(media, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "load_audio", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reader("inpainting").read(key(), {"audio": media["ramp.wav"]})


def test_nan_samples(media):
    file = io.BytesIO()
    samples = np.full(32000, np.nan, np.float32).tobytes()
    header = b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    form = (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16000).to_bytes(4, "little")
    form += (64000).to_bytes(4, "little") + (4).to_bytes(2, "little") + (32).to_bytes(2, "little")
    file.write(header + form + b"data" + len(samples).to_bytes(4, "little") + samples)
    with pytest.raises(BadRecord, match="NaN"):
        reader().read(key(), {"audio": {"bytes": file.getvalue(), "path": "nan.wav"}})


def test_no_task_is_possible(media):
    with pytest.raises(BadRecord, match="task_weights"):
        reader("image").read(key(), {"audio": media["ramp.wav"], "caption": "a ramp"})
