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

KERNELS = {"stretch": Interpolation.BILINEAR, "crop": Interpolation.BICUBIC}

# FFmpeg's scaler reads a few pixels at a time. Pictures with a shorter side are resized as tensors, and so are those that
# are not larger than the result: few pixels take little time, and the scaler's error counts in each of them.
SHORTEST_SIDE = 16

# In pictures that shrink by this factor or more, decoders leave out the deblocking filter where that changes no other
# frame. Such pictures lose the edges of blocks anyway.
COARSE_FACTOR = 2


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
    same kernels, which takes a fraction of the time. Their values differ a little from those of `load_video`: planes are
    resized before the conversion to RGB. Frames that shrink to less than half also lack the deblocking filter if no other
    frame refers to them. Frames that are not larger than `size` have the same values.

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
    first, periods = exact(start), [1 / exact(spec.fps) for spec in specs]
    picked = [_Picked(spec, first, period) for spec, period in zip(specs, periods, strict=True)]
    coarse_side = COARSE_FACTOR * max(side for spec in specs for side in spec.size)
    with closing(timed_pictures(path, first, max_pixels, periods, coarse_side)) as pictures:
        for end, picture in spans(pictures):
            for frames in picked:
                frames.add(end, picture)
            if all(frames.complete for frames in picked):
                break
    if not all(frames.count for frames in picked):
        raise PastEndError(f"{path}: start={start} s is past the end of its picture")
    return [frames.tensor for frames in picked]


class _Picked:
    """The frames of one [`FrameSpec`], the first of them at `first` and one every `period` seconds."""

    def __init__(self, spec: FrameSpec, first: Fraction, period: Fraction):
        self.spec, self.next, self.period = spec, first, period
        self.count = 0
        self._frames = torch.empty((spec.count, 3, *spec.size), dtype=torch.uint8)
        # It keeps tables for the sizes and formats.
        self._reformatter = VideoReformatter()

    @property
    def complete(self) -> bool:
        return self.count == self.spec.count

    @property
    def tensor(self) -> torch.Tensor:
        return self._frames if self.complete else self._frames[: self.count].clone()

    def add(self, end: Fraction, picture: Picture) -> None:
        """Add a picture as often as it is wanted until it ends."""
        resized = None
        while self.next < end and not self.complete:
            target = self._frames[self.count]
            if resized is None:
                self._resize(picture, target)
            else:
                target.copy_(resized)
            resized = target
            self.count, self.next = self.count + 1, self.next + self.period

    def _resize(self, picture: Picture, target: torch.Tensor) -> None:
        size, fit = self.spec.size, self.spec.fit
        if isinstance(picture, VideoFrame):
            if min(picture.width, picture.height) > max(SHORTEST_SIDE - 1, *size):
                try:
                    return self._reduce(picture, target)
                except (av.FFmpegError, ValueError):  # a format that FFmpeg's scaler does not take
                    pass
            picture = frame_tensor(picture)
        target.copy_((resize_frames(picture[None], size, fit)[0] * 255).round())

    def _reduce(self, frame: VideoFrame, target: torch.Tensor) -> None:
        size, swapped = self.spec.size, swaps_sides(frame)
        sides = (frame.width, frame.height) if swapped else (frame.height, frame.width)
        covering, top, left = (size, 0, 0) if self.spec.fit == "stretch" else covering_crop(sides, size)
        height, width = covering[::-1] if swapped else covering
        # Planes of RGB, because FFmpeg has vector code for them, and none for interleaved RGB.
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format="gbrp", interpolation=KERNELS[self.spec.fit], threads=1
        )
        for plane, channel in zip(scaled.planes, (1, 2, 0), strict=True):
            pixels = torch.frombuffer(plane, dtype=torch.uint8).view(height, plane.line_size)[:, :width]
            target[channel] = oriented(pixels, frame)[top : top + size[0], left : left + size[1]]
