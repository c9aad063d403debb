"""Frames for several networks from one pass over a video, resized by FFmpeg."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from .containers import MAX_FRAME_PIXELS
from .files import MediaSource, PastEndError, check_positive, check_window
from .video import (
    Picture,
    check_size,
    covering_crop,
    exact,
    frame_tensor,
    oriented,
    resize_frames,
    spans,
    swaps_sides,
    timed_pictures,
)

# 8-bit YUV is resized in planes of full resolution, then converted: faster than in one step, and as exact.
PLANES = {
    **dict.fromkeys(("yuv420p", "yuv422p", "yuv444p"), "yuv444p"),
    **dict.fromkeys(("yuvj420p", "yuvj422p", "yuvj444p"), "yuvj444p"),
}
FLAGS = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
KERNELS = {"stretch": Interpolation.BILINEAR, "crop": Interpolation.BICUBIC}

# FFmpeg's scaler reads a few pixels at a time. Pictures with a shorter side are resized as tensors, and so are those that
# are not larger than the result: few pixels take little time, and the scaler's error counts in each of them.
SHORTEST_SIDE = 16


@dataclass(frozen=True)
class FrameSpec:
    """
    Frames to read from a video.

    Args:
        fps (`float`): Frames to pick per second.
        count (`int`): Largest number of frames.
        size (`tuple[int, int]`): `(height, width)` to resize frames to.
        fit (`str`): `"stretch"` or `"crop"`, see [`resize_frames`].
    """

    fps: float
    count: int
    size: tuple[int, int]
    fit: Literal["stretch", "crop"] = "stretch"


def load_frames(
    path: MediaSource, specs: Sequence[FrameSpec], start: float = 0.0, max_pixels: int = MAX_FRAME_PIXELS
) -> list[torch.Tensor]:
    """
    Read frames for several networks from one pass over a video.

    The frames are those that [`load_video`] picks. FFmpeg reduces large ones in the decoder's own pixel format, with the
    same kernels, which takes a fraction of the time. Their values differ a little from those of `load_video`, because
    rows and columns of the planes are resized before the conversion to RGB. Frames that are not larger than `size` have
    the same values.

    Args:
        path (`str`, `os.PathLike` or [`MediaBytes`]): Video file or picture; "-" and pipes work too.
        specs (`Sequence[FrameSpec]`): Which frames to pick, and their size.
        start (`float`): Time of the first frame, in seconds.
        max_pixels (`int`): Largest width times height of the file's picture.

    Returns:
        `list[torch.Tensor]`: For each of `specs`, uint8 RGB of shape `[frames, 3, height, width]`. There are `count`
        frames, and fewer if the picture ends earlier.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError, MediaError: As [`load_video`].
        ValueError: An argument is out of range.
    """
    check_window(start, None)
    for spec in specs:
        check_positive("fps", spec.fps)
        check_positive("count", spec.count)
        check_size(spec.size)
    resizers = [_Resizer(spec) for spec in specs]
    first, picked = exact(start), [[] for _ in specs]
    periods = [1 / exact(spec.fps) for spec in specs]

    def time_of_next(index: int) -> Fraction | None:
        number = len(picked[index])
        return None if number == specs[index].count else first + number * periods[index]

    with closing(timed_pictures(path, first, max_pixels, periods)) as pictures:
        for end, picture in spans(pictures):
            for index, resizer in enumerate(resizers):
                frame = None
                while (time := time_of_next(index)) is not None and time < end:
                    frame = resizer(picture) if frame is None else frame
                    picked[index].append(frame)
            if all(time_of_next(index) is None for index in range(len(specs))):
                break
    if not all(picked):
        raise PastEndError(f"{path}: start={start} s is past the end of its picture")
    return [torch.stack(frames) for frames in picked]


class _Resizer:
    """Resizes the pictures of one file to uint8 `[3, height, width]`."""

    def __init__(self, spec: FrameSpec):
        self.size, self.fit = spec.size, spec.fit
        # Each keeps tables for its sizes and formats.
        self._scale, self._convert = VideoReformatter(), VideoReformatter()

    def __call__(self, picture: Picture) -> torch.Tensor:
        if isinstance(picture, VideoFrame):
            if min(picture.width, picture.height) > max(SHORTEST_SIDE - 1, *self.size):
                try:
                    return self._resize(picture)
                except (av.FFmpegError, ValueError):  # a format that FFmpeg's scaler does not take
                    pass
            picture = frame_tensor(picture)
        frame = resize_frames(picture[None], self.size, self.fit)[0]
        return (frame * 255).round().to(torch.uint8)

    def _resize(self, frame: VideoFrame) -> torch.Tensor:
        swapped = swaps_sides(frame)
        sides = (frame.width, frame.height) if swapped else (frame.height, frame.width)
        covering, top, left = (self.size, 0, 0) if self.fit == "stretch" else covering_crop(sides, self.size)
        height, width = covering[::-1] if swapped else covering
        scaled = self._scale.reformat(
            frame,
            width=width,
            height=height,
            format=PLANES.get(frame.format.name, "rgb24"),
            interpolation=KERNELS[self.fit] | FLAGS,
            threads=1,
        )
        pixels = self._convert.reformat(scaled, format="rgb24", threads=1).to_ndarray()
        picture = oriented(torch.from_numpy(pixels).permute(2, 0, 1), frame)
        return picture[:, top : top + self.size[0], left : left + self.size[1]].contiguous()
