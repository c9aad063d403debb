"""Reading and resizing of video frames."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from typing import Literal

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .containers import MAX_FRAME_PIXELS, open_media, picture_stream
from .files import MediaError, MediaSource, PastEndError, check_positive, check_window
from .image import animation, image_format, open_image
from .skipping import WantedTimes, skip_unwanted
from .timeline import origin, timed

# Timestamps are rounded to the stream's ticks (1/1000 s in Matroska). A frame that is late by half a tick counts as
# being on time, but never one that is late by more seconds than this.
MOST_SLACK = Fraction(1, 2000)

# Seeking aims this many seconds ahead of the requested time, more than any decoder reorders frames by.
SEEK_MARGIN = 2

# A picture that starts this many seconds late or more is preceded by black frames.
BLACK_START = Fraction(1, 10)

Picture = VideoFrame | torch.Tensor


def load_video(
    path: MediaSource,
    fps: float = 5.0,
    start: float = 0.0,
    duration: float | None = 10.0,
    size: tuple[int, int] | None = None,
    fit: Literal["stretch", "crop"] = "stretch",
    max_pixels: int = MAX_FRAME_PIXELS,
    max_bytes: int = 2**32,
) -> torch.Tensor:
    """
    Read frames of a video, picked by their timestamps.

    Frame `k` is the one on screen `start + k / fps` seconds after the start of the file, as players show it. A frame
    stays on screen until the next one starts, the last one for its own duration. Where the picture starts later than
    the sound, frames are black until then; the first frame is held instead if it is less than 0.1 s late, as codecs'
    delays make it. A frame counts as being on time if only the rounding of timestamps makes it late (half a tick, at
    most half a millisecond). The rotation stored in the file is applied. Only as much of the file is decoded as needed.

    Pictures and animations are videos too, and look as in [`load_image`]. A still picture lasts 0.04 s.

    Args:
        path (`str`, `os.PathLike` or [`MediaBytes`]): Video file or picture; "-" and pipes work too.
        fps (`float`): Frames to pick per second.
        start (`float`): Time of the first frame, in seconds.
        duration (`float`, *optional*): Seconds to read; `None` reads to the end of the picture.
        size (`tuple[int, int]`, *optional*): `(height, width)` to resize frames to; defaults to the file's size.
        fit (`str`): How to resize, see [`resize_frames`].
        max_pixels (`int`): Largest width times height of the file's picture.
        max_bytes (`int`): Largest result, in bytes.

    Returns:
        `torch.Tensor`: Shape `[frames, 3, height, width]`, RGB: uint8 without `size`, float32 in 0..1 with it. There
        are `round(duration * fps)` frames, at least one, and fewer if the picture ends earlier.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: The path is missing, a folder, or not readable.
        MediaError: The file is empty, cut off or not supported, has no video stream or none that can be decoded,
            exceeds a limit, changes its picture size midway (without `size`), or `start` is past its end.
        ValueError: An argument is out of range.
    """
    check_positive("fps", fps)
    check_window(start, duration)
    check_positive("max_pixels", max_pixels)
    check_positive("max_bytes", max_bytes)
    if size is not None:
        check_size(size)

    first, step = exact(start), 1 / exact(fps)
    count = None if duration is None else max(1, round(exact(duration) * exact(fps)))
    times = (first + k * step for k in (itertools.count() if count is None else range(count)))
    pictures, total = [], 0
    with closing(timed_pictures(path, first, max_pixels, [step])) as timeline:
        for picture in _on_screen(spans(timeline), times):
            pictures.append(picture if size is None else resize_frames(picture[None], size, fit)[0])
            total += pictures[-1].nbytes
            if total > max_bytes:
                raise MediaError(
                    f"{path}: the frames take more than `max_bytes` ({max_bytes}); lower `duration`, `fps` or `size`"
                )
    if not pictures:
        raise PastEndError(f"{path}: start={start} s is past the end of its picture")
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
    check_size(size)
    if fit not in ("stretch", "crop"):
        raise ValueError(f"`fit` must be 'stretch' or 'crop', got {fit!r}")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"`frames` must have the shape [frames, 3, height, width], got {list(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"`frames` must be uint8 or floating point, got {frames.dtype}")
    resize = _stretch if fit == "stretch" else _crop
    return torch.cat([resize(frame[None], tuple(size)) for frame in frames])


def _stretch(frame: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    pixels = frame.float().div_(255) if frame.dtype == torch.uint8 else frame.float()
    if pixels.shape[-2:] == size:
        return pixels
    # Rounding, and the negative lobes of bicubic, may carry a weighted mean beyond the range.
    return F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def _crop(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    covering, top, left = covering_crop(frame.shape[-2:], size)
    return _stretch(frame, covering, "bicubic")[..., top : top + size[0], left : left + size[1]]


def covering_crop(sides: Sequence[int], size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    """Return the size that covers `size` without distortion, and where its centre crop begins: top and left."""
    scale = max(side / actual for side, actual in zip(size, sides, strict=True))
    covering = tuple(max(side, round(actual * scale)) for side, actual in zip(size, sides, strict=True))
    top, left = ((actual - side) // 2 for side, actual in zip(size, covering, strict=True))
    return covering, top, left


def check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"`size` must be (height, width), two whole numbers above 0, got {size!r}")


def exact(value: float) -> Fraction:
    """The decimal number that was written: 0.1 as 1/10."""
    return Fraction(str(float(value)))


def _on_screen(spans: Iterable[tuple[Fraction, Picture]], times: Iterator[Fraction]) -> Iterator[torch.Tensor]:
    """Yield the picture on screen at each of the rising `times`, as far as the spans `(end, picture)` reach."""
    wanted = next(times)
    for end, picture in spans:
        tensor = None
        while wanted < end:
            if tensor is None:
                tensor = picture if isinstance(picture, torch.Tensor) else frame_tensor(picture)
            yield tensor
            wanted = next(times, None)
            if wanted is None:
                return


def spans(pictures: Iterable[tuple[Fraction, Fraction, Picture]]) -> Iterator[tuple[Fraction, Picture]]:
    """Yield `(end, picture)`: each picture lasts until the next one starts, the last one for its own duration."""
    shown = None
    for time, duration, picture in pictures:
        if shown is not None:
            yield time, shown
        shown, end = picture, time + duration
    if shown is not None:
        yield end, shown


def timed_pictures(
    path: MediaSource, first: Fraction, max_pixels: int, periods: Sequence[Fraction], coarse_side: int | None = None
) -> Iterator[tuple[Fraction, Fraction, Picture]]:
    """
    Yield `(time, duration, picture)` in seconds, starting no later than with the picture on screen at `first`.

    Pictures that are on screen at none of the moments `first + k * period` may be left out. In videos whose sides are
    longer than `coarse_side`, frames that no other frame refers to may lack the deblocking filter.
    """

    def open_stream(container: InputContainer) -> VideoStream:
        stream = picture_stream(container, path, max_pixels)
        context = stream.codec_context
        if coarse_side is not None and min(context.width, context.height) > coarse_side:
            context.options = {**context.options, "skip_loop_filter": "noref"}
        return stream

    wanted = WantedTimes(first, periods)
    if is_picture(path):
        with open_image(path, max_pixels) as image:
            yield from animation(image, path)
        return
    if first > SEEK_MARGIN:
        with open_media(path, max_pixels) as container:
            stream = open_stream(container)
            if _seek(container, stream, first - SEEK_MARGIN):
                frames = timed_frames(container, stream, path, wanted)
                head = next(frames, None)
                if head is not None and head[0] <= first:
                    yield head
                    yield from frames
                    return
    with open_media(path, max_pixels) as container:
        frames = timed_frames(container, open_stream(container), path, wanted)
        head = next(frames, None)
        if head is None:
            raise MediaError(f"{path}: nothing in its video stream can be decoded")
        if head[0] >= BLACK_START:
            yield Fraction(0), head[0], torch.zeros_like(frame_tensor(head[2]))
        yield head
        yield from frames


def is_picture(path: MediaSource) -> bool:
    """Tell whether a file is a picture or animation that Pillow reads."""
    name = image_format(path)
    if name != "JPEG":
        return name is not None
    try:
        with open_media(path):  # a motion JPEG video
            return False
    except MediaError:
        return True


def _seek(container: InputContainer, stream: VideoStream, time: Fraction) -> bool:
    """Move to a key frame before a moment of the timeline; return whether that worked."""
    zero = origin(container)
    if zero is None:
        return False
    try:
        container.seek(int((zero + time) / stream.time_base), stream=stream)
    except av.FFmpegError:
        return False
    return True


def timed_frames(
    container: InputContainer, stream: VideoStream, path: MediaSource, wanted: WantedTimes | None = None
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """
    Yield `(time, duration, frame)` from the container's position, in seconds, with times early by the slack.

    Frames that are on screen at none of the `wanted` moments may be left out.
    """
    # Where torch computes with one thread, as in data loader workers, the other cores decode other files.
    stream.thread_type = "AUTO" if torch.get_num_threads() > 1 else "NONE"
    slack = min(stream.time_base / 2, MOST_SLACK)
    choose = None if wanted is None else lambda packets: skip_unwanted(packets, container, stream, wanted, slack)
    for time, duration, frame in timed(container, stream, path, choose):
        yield time - slack, duration, frame


def frame_tensor(frame: VideoFrame) -> torch.Tensor:
    """Return uint8 RGB `[3, height, width]`, rotated and mirrored by the frame's display matrix."""
    return oriented(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1), frame).contiguous()


def oriented(picture: torch.Tensor, frame: VideoFrame) -> torch.Tensor:
    """Rotate and mirror the pixels of a frame, `[..., height, width]`, by its display matrix."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return picture
    across, down = matrix[:2, :2]
    if _swaps_sides(matrix):
        picture, across, down = picture.transpose(-2, -1), down, across
    return picture.flip([dim for dim, factor in ((-1, across[0]), (-2, down[1])) if factor < 0])


def swaps_sides(frame: VideoFrame) -> bool:
    """Tell whether the display matrix of a frame turns its width into its height."""
    matrix = _display_matrix(frame)
    return matrix is not None and _swaps_sides(matrix)


def _swaps_sides(matrix: np.ndarray) -> bool:
    return bool(abs(matrix[0, 1]) > abs(matrix[0, 0]))


def _display_matrix(frame: VideoFrame) -> np.ndarray | None:
    try:
        # Not `frame.side_data`: it would keep the frame, and its scaler's threads, until the garbage collector runs.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # a kind of side data that PyAV does not know, such as EXIF
        angle = np.deg2rad(frame.rotation)
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return None if matrix is None else np.frombuffer(matrix, np.int32).reshape(3, 3)
