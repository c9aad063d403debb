"""What readers and writers share: argument checks, opening and decoding a source, replacing a target whole."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.frame import Frame
from av.stream import Disposition, Stream
from av.video.stream import VideoStream
from diffusers.utils import logging

from ..atomic import check_target, replacing  # noqa: F401

logger = logging.get_logger(__name__)

av.logging.set_level(None)

# Seconds missing between two frames of sound, from which on they are reported as lost.
LONGEST_GAP = 0.1


class MediaError(ValueError):
    """A media file that cannot be used as asked. The message is one line: the path and what is wrong."""


class PastEndError(MediaError):
    """Reading was to begin beyond the end of the file."""


@dataclass(frozen=True)
class MediaBytes:
    """
    A media file in memory, for every reader that takes a path.

    Args:
        data: The whole file.
        name: What messages call it, in the place of a path. FFmpeg takes the format from its extension where the
            contents leave that open.
    """

    data: bytes = field(repr=False)
    name: str = "bytes"

    def __str__(self) -> str:
        return self.name

    def open(self) -> io.BytesIO:
        """The data as a new file object, at its beginning."""
        file = _NamedBytesIO(self.data)
        file.name = self.name
        return file


class _NamedBytesIO(io.BytesIO):
    """An `io.BytesIO` that can be given a `name`, which is where PyAV looks for the extension."""


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` naming the argument unless `value` is a finite number above 0."""
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite number above 0, got {value!r}")


def check_sampling_rate(name: str, value: int) -> int:
    """The rate in Hz as an `int`; `ValueError` naming the argument unless it is a whole number above 0."""
    check_positive(name, value)
    if value != int(value):
        raise ValueError(f"`{name}` must be a whole number of Hz, got {value!r}")
    return int(value)


def check_window(start: float, duration: float | None) -> None:
    """Raise `ValueError` unless `start` is finite and not negative, and `duration` is `None` or above 0 (seconds)."""
    if not (isinstance(start, Real) and math.isfinite(start) and start >= 0):
        raise ValueError(f"`start` must be a finite number of seconds, 0 or more, got {start!r}")
    if duration is not None:
        check_positive("duration", duration)


def check_source(path: str | os.PathLike | MediaBytes) -> None:
    """Raise `FileNotFoundError`, `IsADirectoryError`, or `MediaError` for an empty file."""
    if isinstance(path, MediaBytes):
        if not path.data:
            raise MediaError(f"{path}: the file is empty")
        return
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if source.is_dir():
        raise IsADirectoryError(f"{path}: a folder, not a media file")
    if source.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")


@contextmanager
def open_media(path: str | os.PathLike | MediaBytes) -> Iterator[InputContainer]:
    """Open a media file for reading and close it at the end; for errors see `check_source`, `MediaError` otherwise."""
    check_source(path)
    if isinstance(path, MediaBytes):
        # Bytes may be a playlist, for which FFmpeg would read other files or the network. No protocol is called "none".
        source, options = path.open(), {"protocol_whitelist": "none"}
    else:
        source, options = str(Path(path).absolute()), {}
    try:
        container = av.open(source, metadata_errors="replace", container_options=options)
    except PermissionError:
        raise PermissionError(f"{path}: file is not readable") from None
    except av.FFmpegError as error:
        raise MediaError(f"{path}: not a media file, or cut off ({error.strerror})") from None
    with container:
        if container.format.name == "tty":  # what FFmpeg takes plain text for
            raise MediaError(f"{path}: not a media file, but text")
        yield container


def picture_stream(container: InputContainer, path: str | os.PathLike | MediaBytes) -> VideoStream:
    """The first video stream that is not a cover picture; `MediaError` if there is none or no decoder for it."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return decodable(stream, path)
    raise MediaError(f"{path}: has no video stream")


def decodable(stream: Stream, path: str | os.PathLike | MediaBytes) -> Stream:
    """The stream itself; `MediaError` if FFmpeg has no decoder for it."""
    if stream.codec_context is None:
        raise MediaError(f"{path}: no decoder for its {stream.type} stream")
    return stream


def decode(container: InputContainer, stream: Stream, path: str | os.PathLike | MediaBytes) -> Iterator[Frame]:
    """Every frame of the stream that can be decoded, in order. Damage is passed over with one warning."""
    warned, expected = False, None

    def passed_over() -> None:
        nonlocal warned
        if not warned:
            warned = True
            logger.warning(f"{path}: the file is damaged or has gaps; what cannot be decoded is left out.")

    def packets() -> Iterator[av.Packet | None]:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
        except av.FFmpegError:
            passed_over()
        yield None

    for packet in packets():
        if packet is not None and packet.is_corrupt:
            passed_over()
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            passed_over()
            continue
        for frame in frames:
            if isinstance(frame, AudioFrame) and frame.pts is not None:
                if expected is not None and (frame.pts - expected) * stream.time_base > LONGEST_GAP:
                    passed_over()
                expected = frame.pts + frame.samples / frame.sample_rate / stream.time_base
            yield frame
