"""Reading and resizing of video frames."""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from typing import Literal

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .files import (
    MediaBytes,
    MediaError,
    PastEndError,
    check_positive,
    check_window,
    decode,
    open_media,
    picture_stream,
)

# Timestamps are rounded to the stream's ticks (1/1000 s in Matroska): a frame late by half a tick, or by this many
# seconds where ticks are coarse, counts as being on time.
MOST_SLACK = Fraction(1, 2000)

# Seeking aims this much ahead of the wanted time, more than any decoder reorders frames by.
SEEK_MARGIN = 2


def load_video(
    path: str | os.PathLike | MediaBytes,
    fps: float = 5.0,
    start: float = 0.0,
    duration: float | None = 10.0,
    size: tuple[int, int] | None = None,
    fit: Literal["stretch", "crop"] = "stretch",
) -> torch.Tensor:
    """
    Read frames of a video, picked by their timestamps.

    Frame `k` is the one on screen at `start + k / fps` seconds after the video stream's start: the last one whose
    timestamp is not later, but for the rounding of stored timestamps (half a tick, at most half a millisecond). A
    frame stays on screen until the next one, the last one until its duration ends. The rotation stored in the file is
    applied. The source is decoded as a stream, no further than needed.

    Args:
        path: Any video file FFmpeg can read, or its bytes.
        fps: Frames picked per second.
        start: Time of the first frame, in seconds.
        duration: Length of the window, in seconds; `None` reads to the end.
        size: `(height, width)` to resize each picked frame to; `None` keeps the source's size.
        fit: how to resize, see [`resize_frames`].

    Returns:
        `torch.Tensor` of shape `[frames, 3, height, width]`, RGB: uint8 without `size`, float32 in 0..1 with it. There
        are `round(duration * fps)` frames, but at least one, and fewer if the source ends before.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file; it is a folder.
        MediaError: The file is empty, cut off or not media, has no video stream or none that can be decoded, changes
            its picture size midway (without `size`), or `start` lies beyond its end.
        ValueError: An argument is out of range.
    """
    check_positive("fps", fps)
    check_window(start, duration)
    if size is not None:
        _check_size(size)

    first, step = _exact(start), 1 / _exact(fps)
    count = None if duration is None else max(1, round(_exact(duration) * _exact(fps)))
    times = (first + k * step for k in (itertools.count() if count is None else range(count)))
    with closing(_timed_frames(path, first)) as frames:
        pictures = [
            picture if size is None else resize_frames(picture[None], size, fit)[0]
            for picture in _on_screen(_spans(frames), times)
        ]
    if not pictures:
        raise PastEndError(f"{path}: start={start} s lies beyond the end of the video")
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise MediaError(f"{path}: changes its picture size midway, give a `size`")
    return torch.stack(pictures)


def resize_frames(
    frames: torch.Tensor, size: tuple[int, int], fit: Literal["stretch", "crop"] = "stretch"
) -> torch.Tensor:
    """
    Resize frames with antialiasing.

    Args:
        frames: `[frames, 3, height, width]`, uint8, or floating point in 0..1.
        size: `(height, width)` wanted.
        fit: `"stretch"` fills the size, bilinear, without keeping the aspect ratio; `"crop"` covers it, bicubic, and
            cuts out the centre.

    Returns:
        `torch.Tensor` of shape `[frames, 3, *size]`, float32 in 0..1.

    Raises:
        ValueError: `frames` has another shape or type, `size` is not two whole numbers above 0, or `fit` is unknown.
    """
    _check_size(size)
    if fit not in ("stretch", "crop"):
        raise ValueError(f"`fit` must be 'stretch' or 'crop', got {fit!r}")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"`frames` must have the shape [frames, 3, height, width], got {list(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"`frames` must be uint8 or floating point, got {frames.dtype}")
    resize = _stretch if fit == "stretch" else _crop
    return torch.cat([resize(frame[None], tuple(size)) for frame in frames])


def _stretch(frame: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    pixels = frame.float() / 255 if frame.dtype == torch.uint8 else frame.float()
    if pixels.shape[-2:] == size:
        return pixels
    # Rounding, and the negative lobes of bicubic, may carry a weighted mean beyond the range.
    return F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def _crop(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    scale = max(side / actual for side, actual in zip(size, frame.shape[-2:], strict=True))
    covering = tuple(max(side, round(actual * scale)) for side, actual in zip(size, frame.shape[-2:], strict=True))
    top, left = ((actual - side) // 2 for side, actual in zip(size, covering, strict=True))
    return _stretch(frame, covering, "bicubic")[..., top : top + size[0], left : left + size[1]]


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"`size` must be (height, width), two whole numbers above 0, got {size!r}")


def _exact(value: float) -> Fraction:
    """The decimal number that was written: 0.1 as 1/10."""
    return Fraction(str(float(value)))


def _on_screen(spans: Iterable[tuple[Fraction, VideoFrame]], times: Iterator[Fraction]) -> Iterator[torch.Tensor]:
    """The picture on screen at each of the rising `times`, as far as the spans `(end, frame)` reach."""
    wanted = next(times)
    for end, frame in spans:
        picture = None
        while wanted < end:
            if picture is None:
                picture = _to_tensor(frame)
            yield picture
            wanted = next(times, None)
            if wanted is None:
                return


def _spans(frames: Iterable[tuple[Fraction, Fraction, VideoFrame]]) -> Iterator[tuple[Fraction, VideoFrame]]:
    """`(end, frame)`: each frame lasts until the next one's time, the last one for its own duration."""
    shown = None
    for time, duration, frame in frames:
        if shown is not None:
            yield time, shown
        shown, end = frame, time + duration
    if shown is not None:
        yield end, shown


def _timed_frames(
    path: str | os.PathLike | MediaBytes, first: Fraction
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """`(time, duration, frame)` in seconds after the stream's start, beginning no later than the one at `first`."""
    if first > SEEK_MARGIN:
        with open_media(path) as container:
            stream = picture_stream(container, path)
            if _seek(container, stream, first - SEEK_MARGIN):
                frames = timed(container, stream, path)
                head = next(frames, None)
                if head is not None and head[0] <= first:
                    yield head
                    yield from frames
                    return
    with open_media(path) as container:
        frames = timed(container, picture_stream(container, path), path)
        head = next(frames, None)
        if head is None:
            raise MediaError(f"{path}: nothing in its video stream can be decoded")
        yield head
        yield from frames


def _seek(container: InputContainer, stream: VideoStream, time: Fraction) -> bool:
    if stream.start_time is None:
        return False
    try:
        container.seek(stream.start_time + int(time / stream.time_base), stream=stream)
    except av.FFmpegError:
        return False
    return True


def timed(
    container: InputContainer, stream: VideoStream, path: str | os.PathLike | MediaBytes
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """`(time, duration, frame)` of every frame from the container's position on, in seconds of the stream."""
    stream.thread_type = "AUTO"
    tick = stream.time_base
    slack = min(tick / 2, MOST_SLACK)
    usual = 1 / (stream.average_rate or Fraction(25))
    origin, following = stream.start_time, -slack
    for frame in decode(container, stream, path):
        stamp = frame.dts if frame.pts is None else frame.pts
        if origin is None:
            origin = stamp
        time = following if stamp is None else (stamp - origin) * tick - slack
        duration = frame.duration * tick if frame.duration else usual
        following = time + duration
        yield time, duration, frame


def _to_tensor(frame: VideoFrame) -> torch.Tensor:
    """uint8 RGB `[3, height, width]`, turned and mirrored as the frame's display matrix says."""
    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        across, down = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2]
        swapped = abs(across[1]) > abs(across[0])
        if swapped:
            picture, across, down = picture.transpose(1, 2), down, across
        mirrored = [dim for dim, factor in ((2, across[0]), (1, down[1])) if factor < 0]
        picture = picture.flip(mirrored)
    return picture.contiguous()
