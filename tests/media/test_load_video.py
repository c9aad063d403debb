from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from helpers import assert_equal

from audiox_diffusers.media import MediaError, load_video, resize_frames, save_audio, timeline

HEIGHT, WIDTH = 24, 32


def write_video(path, pictures, rate=24, stamps=None, time_base=None, rotation=None, hflip=False, offset=0, **options):
    """Write `pictures` [T, H, W, 3] as lossless video. Stamps are in units of `time_base`."""
    time_base = time_base or 1 / Fraction(rate)
    stamps = range(len(pictures)) if stamps is None else stamps
    codec = options.pop("codec", "libx264")
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate, options={"qp": "0", **options})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = options.pop("pix_fmt", "yuv444p" if codec == "libx264" else "yuv420p")
        stream.codec_context.time_base = time_base
        if rotation is not None or hflip:
            stream.set_display_rotation(rotation or 0, hflip=hflip)
        for stamp, picture in zip(stamps, pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp + offset, time_base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def greys(count, step=4):
    levels = np.arange(count, dtype=np.uint8) * step
    return np.broadcast_to(levels[:, None, None, None], (count, HEIGHT, WIDTH, 3)).copy()


def indices(frames, step=4):
    """Return the index of the source frame for each picked frame."""
    levels = frames.float().mean(dim=(1, 2, 3))
    assert (frames.float() - levels[:, None, None, None]).abs().max() <= 1
    return (levels / step).round().int().tolist()


def on_screen(stamps, fps, start, count):
    return [max(i for i, stamp in enumerate(stamps) if stamp <= start + Fraction(k) / fps) for k in range(count)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("rate", [24, 30, Fraction(24000, 1001)])
def test_frames_are_picked_by_time(tmp_path, suffix, rate):
    path = write_video(tmp_path / f"clip{suffix}", greys(48), rate)
    stamps = [k / Fraction(rate) for k in range(48)]

    frames = load_video(path, fps=5, duration=1.5)

    assert frames.shape == (8, 3, HEIGHT, WIDTH) and frames.dtype == torch.uint8
    assert indices(frames) == on_screen(stamps, 5, 0, 8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_frame_once_at_its_own_rate(tmp_path, suffix):
    path = write_video(tmp_path / f"clip{suffix}", greys(48), 24)
    assert indices(load_video(path, fps=24, duration=None)) == list(range(48))


def test_higher_rate_repeats_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4", greys(6), 10)
    assert indices(load_video(path, fps=20, duration=None)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_variable_frame_rate(tmp_path):
    stamps = [0, 100, 150, 900, 910, 920, 1300, 1900]  # milliseconds
    path = write_video(tmp_path / "clip.mp4", greys(8), 25, stamps, Fraction(1, 1000))
    assert indices(load_video(path, fps=10, duration=1.9)) == on_screen(stamps, Fraction(10, 1000), 0, 19)


def test_times_count_from_the_start_of_the_file(tmp_path):
    path = write_video(tmp_path / "clip.mkv", greys(24), 24, offset=48)
    assert indices(load_video(path, fps=24, start=0.5, duration=0.25)) == [12, 13, 14, 15, 16, 17]


def test_start_and_short_end(tmp_path):
    path = write_video(tmp_path / "clip.mp4", greys(48), 24)
    assert indices(load_video(path, fps=4, start=1.25, duration=10)) == [30, 36, 42]
    assert load_video(path, fps=4, start=1.25, duration=None).shape[0] == 3
    assert load_video(path, fps=5, duration=0.01).shape[0] == 1


def test_last_frame_stays_for_its_duration(tmp_path):
    path = write_video(tmp_path / "clip.mp4", greys(20), 10)
    assert load_video(path, fps=100, start=1.9, duration=None).shape[0] == 10


@pytest.mark.parametrize("bframes", ["0", "3"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_late_start_is_exact(tmp_path, suffix, bframes):
    path = write_video(tmp_path / f"clip{suffix}", greys(60, step=4), 10, g="7", bf=bframes)
    assert indices(load_video(path, fps=10, start=4.5, duration=0.8)) == list(range(45, 53))


def test_late_start_seeks(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", greys(60), 2, g="2")
    decoded = []

    def counted(*args):
        for frame in video_decode(*args):
            decoded.append(frame.pts)
            yield frame

    video_decode = timeline.decode
    monkeypatch.setattr(timeline, "decode", counted)
    assert indices(load_video(path, fps=2, start=25, duration=1)) == [50, 51]
    assert len(decoded) < 15


def test_seeking_too_far_starts_over(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", greys(60), 10, g="5")
    from audiox_diffusers.media import video

    seek = video._seek
    monkeypatch.setattr(video, "_seek", lambda container, stream, time: seek(container, stream, time + 3))
    assert indices(load_video(path, fps=10, start=2.5, duration=0.3)) == [25, 26, 27]


def test_single_frame(tmp_path):
    path = write_video(tmp_path / "clip.mp4", greys(1), 24)
    assert load_video(path).shape == (1, 3, HEIGHT, WIDTH)


def test_frames_hidden_by_an_edit_list_are_skipped(tmp_path):
    # The muxer hides frames before 0 by an edit list.
    path = write_video(tmp_path / "clip.mp4", greys(48), 24, offset=-20)
    assert indices(load_video(path, fps=24, duration=None)) == list(range(20, 48))


def corners():
    """Return one picture with quarters in red, green, blue and white."""
    picture = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    picture[0, :12, :16, 0] = picture[0, :12, 16:, 1] = picture[0, 12:, :16, 2] = 255
    picture[0, 12:, 16:] = 255
    return picture


def test_rotation_beside_side_data_that_pyav_does_not_know(tmp_path, monkeypatch):
    def unknown(frame):
        raise ValueError("31 is not a valid Type")

    for rotation in (0, 90, 180, -90):
        path = write_video(tmp_path / f"{rotation}.mp4", corners(), rotation=rotation)
        expected = load_video(path)
        with monkeypatch.context() as patch:
            patch.setattr("audiox_diffusers.media.video.SideDataContainer", unknown)
            assert_equal(load_video(path), expected)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("hflip", [False, True])
def test_rotation_is_applied(tmp_path, rotation, hflip):
    path = write_video(tmp_path / "clip.mp4", corners(), rotation=rotation, hflip=hflip)
    expected = np.rot90(corners()[0], rotation // 90)
    if hflip:
        expected = expected[:, ::-1]

    frames = load_video(path)

    assert frames.shape == (1, 3, *expected.shape[:2])
    difference = frames[0].permute(1, 2, 0).float() - torch.from_numpy(expected.copy()).float()
    assert difference.abs().max() < 12


def test_odd_size(tmp_path):
    pictures = np.full((3, 25, 33, 3), 90, np.uint8)
    frames = load_video(write_video(tmp_path / "clip.mp4", pictures))
    assert frames.shape == (1, 3, 25, 33)
    assert (frames.int() - 90).abs().max() <= 1


def test_size(tmp_path):
    path = write_video(tmp_path / "clip.mp4", greys(48), 24)
    frames = load_video(path, fps=5, duration=1, size=(8, 10))
    assert frames.shape == (5, 3, 8, 10) and frames.dtype == torch.float32
    assert torch.equal(frames, resize_frames(load_video(path, fps=5, duration=1), (8, 10)))


def test_resize_frames():
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(2, 3, 16, 64)
    same = resize_frames(ramp, (16, 64))
    assert same.dtype == torch.float32 and torch.equal(same, ramp / 255)
    half = resize_frames(ramp, (4, 32))
    assert half.shape == (2, 3, 4, 32)
    assert torch.allclose(half[0, 0, 0, 1:-1], (torch.arange(32) * 8 + 2)[1:-1] / 255, atol=1e-5)
    assert torch.allclose(resize_frames(ramp.double() / 255, (4, 32)), half, atol=1e-6)
    assert resize_frames(torch.ones(1, 3, 37, 53), (224, 224)).max() <= 1


@pytest.mark.parametrize(
    "frames, size",
    [
        (torch.zeros(3, 8, 8), (4, 4)),
        (torch.zeros(1, 1, 8, 8), (4, 4)),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), (4, 4)),
        (torch.zeros(1, 3, 8, 8), (0, 4)),
        (torch.zeros(1, 3, 8, 8), (4.0, 4)),
    ],
)
def test_resize_frames_refuses(frames, size):
    with pytest.raises(ValueError):
        resize_frames(frames, size)


@pytest.mark.parametrize(
    "name, value",
    [
        ("fps", 0),
        ("fps", -5.0),
        ("fps", float("nan")),
        ("start", -0.1),
        ("start", float("inf")),
        ("duration", 0),
        ("duration", float("nan")),
        ("size", (0, 10)),
    ],
)
def test_arguments_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        load_video(tmp_path / "missing.mp4", **{name: value})


def test_start_past_the_end(tmp_path):
    path = write_video(tmp_path / "clip.mp4", greys(24), 24)
    assert load_video(path, start=0.95).shape[0] == 1
    for start in (1.0, 50.0):
        with pytest.raises(MediaError, match="past the end"):
            load_video(path, start=start)


def test_audio_file_is_not_a_video(tmp_path):
    save_audio(tmp_path / "sound.mp3", torch.zeros(1, 8000), 16000)
    with pytest.raises(MediaError, match=r"sound\.mp3: has no video stream"):
        load_video(tmp_path / "sound.mp3")


def test_cover_picture_is_not_a_video(tmp_path):
    save_audio(tmp_path / "plain.mp3", torch.zeros(1, 8000), 16000)
    with av.open(str(tmp_path / "plain.mp3")) as source, av.open(str(tmp_path / "cover.mp3"), "w") as target:
        sound = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for packet in source.demux():
            if packet.size:
                packet.stream = sound
                target.mux(packet)
        target.mux(cover.encode(av.VideoFrame.from_ndarray(greys(1)[0], format="rgb24")))
        target.mux(cover.encode(None))
    with av.open(str(tmp_path / "cover.mp3")) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match="has no video stream"):
        load_video(tmp_path / "cover.mp3")


def test_crop_keeps_the_aspect_ratio_and_the_centre():
    """A circle stays round, and only the central square is kept."""
    rows, columns = torch.meshgrid(torch.arange(90), torch.arange(160), indexing="ij")
    circle = ((rows - 44.5) ** 2 + (columns - 79.5) ** 2 < 30**2).float()
    frames = circle.expand(2, 3, 90, 160).clone()
    frames[..., :30] = 1.0
    cropped = resize_frames(frames, (45, 45), fit="crop")
    assert cropped.shape == (2, 3, 45, 45) and 0 <= cropped.min() and cropped.max() <= 1
    inside = cropped[0, 0] > 0.5
    assert all(abs(inside.any(dim=axis).sum() - 30) <= 1 for axis in (0, 1))
    assert not inside[:, :5].any()
    assert resize_frames(frames, (45, 45))[0, 0, :, :5].min() > 0.9
    with pytest.raises(ValueError, match="`fit`"):
        resize_frames(frames, (45, 45), fit="pad")
