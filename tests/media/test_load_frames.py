"""Frames of several rates and sizes from one pass over a video."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from helpers import assert_equal, refused

from audiox_diffusers.media import (
    FrameSpec,
    MediaError,
    frames,
    load_frames,
    load_image,
    load_video,
    save_video,
    skipping,
)

CLIP, SYNC = FrameSpec(5, 8, (28, 28)), FrameSpec(25, 40, (24, 24), "crop")


def write_movie(path, rotation=0, pix_fmt="yuv420p", codec="libx264", count=60, color_range=None):
    """Write a smooth moving picture of 96x64 with reordered frames, 30 a second."""
    rows, columns = np.mgrid[:64, :96]
    with av.open(str(path), "w") as target:
        options = {"bf": "3", "g": "24", "x265-params": "log-level=none"} if codec != "mpeg4" else {"bf": "2"}
        stream = target.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(count):
            waves = [np.sin((columns + shift) / 20 + index / 9) + np.cos((rows - shift) / 15) for shift in (0, 9, 30)]
            picture = (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def expected(path, spec, start=0.0):
    return load_video(path, spec.fps, start, spec.count / spec.fps, spec.size, spec.fit) * 255


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation": 90},
        {"rotation": 180},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuvj420p"},
        {"pix_fmt": "yuv420p", "color_range": 2},
        {"pix_fmt": "yuv420p10le"},
        {"codec": "mpeg4"},
    ],
    ids=str,
)
@pytest.mark.parametrize("start", [0.0, 0.31])
def test_frames_are_those_of_load_video(tmp_path, options, start):
    """The kernels are the same, so pictures differ by the rounding of the planes and by edges of blocks."""
    path = write_movie(tmp_path / "clip.mp4", **options)
    frames = load_frames(path, [CLIP, SYNC], start)
    for spec, found in zip((CLIP, SYNC), frames, strict=True):
        wanted = expected(path, spec, start)
        assert found.shape == wanted.shape and found.dtype == torch.uint8
        difference = (found - wanted).abs()
        assert difference.mean() < 2 and difference.max() < 12


@pytest.mark.parametrize("size", [(64, 96), (64, 64), (80, 60), (128, 128)], ids=str)
@pytest.mark.parametrize("rotation", [0, 90])
def test_frames_that_are_not_reduced_are_those_of_load_video_to_the_bit(tmp_path, size, rotation):
    """A small model learns from small pictures, where the error of FFmpeg's scaler would count."""
    path = write_movie(tmp_path / "clip.mp4", rotation, count=20)
    for fit in ("stretch", "crop"):
        spec = FrameSpec(10, 5, size, fit)
        (found,) = load_frames(path, [spec])
        assert_equal(found.float(), expected(path, spec).round())


@pytest.mark.parametrize("side, coarse", [(24, True), (30, True), (34, False), (48, False)])
def test_deblocking_is_left_out_only_where_pictures_shrink_a_lot(tmp_path, monkeypatch, side, coarse):
    pictures = np.random.default_rng(0).integers(0, 256, (30, 16, 24, 3), dtype=np.uint8)
    path = tmp_path / "blocks.mp4"
    save_video(path, pictures.repeat(4, axis=1).repeat(4, axis=2), fps=30)
    spec = FrameSpec(30, 30, (side, side))
    (found,) = load_frames(path, [spec])
    monkeypatch.setattr(frames, "COARSE_FACTOR", 1000)
    (exact,) = load_frames(path, [spec])
    assert torch.equal(found, exact) != coarse
    assert (found.float() - exact.float()).abs().mean() < 0.5


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_skipped_frames_change_no_others(tmp_path, monkeypatch, codec, suffix):
    """Frames that are on screen at no wanted moment need not be decoded. All others stay the same to the bit."""
    path = write_movie(tmp_path / f"clip{suffix}", codec=codec, count=90)
    starts = [0.0, 0.5, 2.3]
    quick = [load_video(path, 4, start, None) for start in starts]
    monkeypatch.setattr(skipping, "CODECS", set())
    for start, found in zip(starts, quick, strict=True):
        assert_equal(found, load_video(path, 4, start, None))


def test_fewer_frames_are_decoded(tmp_path, monkeypatch):
    path = write_movie(tmp_path / "clip.mp4")
    skipped = []

    def count(packets, container, stream, *others):
        for packet in skipping.skip_unwanted(packets, container, stream, *others):
            skipped.append(str(stream.codec_context.skip_frame) != "DEFAULT")
            yield packet

    monkeypatch.setattr("audiox_diffusers.media.video.skip_unwanted", count)
    load_frames(path, [FrameSpec(5, 10, (32, 32))])
    assert len(skipped) > 50 and sum(skipped) > len(skipped) / 2


def test_a_picture_is_resized_as_a_tensor(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    av.VideoFrame.from_ndarray(picture, format="rgb24").to_image().save(path)
    (frames,) = load_frames(path, [FrameSpec(5, 3, (40, 50))])
    assert_equal(frames, load_image(path)[None])


def test_tiny_pictures(tmp_path):
    """FFmpeg's scaler reads past rows of a few pixels."""
    with av.open(str(tmp_path / "tiny.mkv"), "w") as target:
        stream = target.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 3, 2, "yuv420p"
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((2, 3, 3), 50 * index, np.uint8), format="rgb24")
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    (frames,) = load_frames(tmp_path / "tiny.mkv", [FrameSpec(10, 5, (8, 8))])
    assert [round(float(frame.float().mean()) / 50) for frame in frames] == [0, 1, 2, 3, 4]


def test_wrong_arguments(tmp_path):
    path = write_movie(tmp_path / "clip.mp4")
    for name, spec in (
        ("fps", FrameSpec(0, 1, (8, 8))),
        ("count", FrameSpec(5, 0, (8, 8))),
        ("size", FrameSpec(5, 1, (8, 0))),
    ):
        with refused(f"`{name}`"):
            load_frames(path, [spec])
    with refused("start=9.0 s is past the end", error=MediaError):
        load_frames(path, [CLIP], 9.0)
