"""Media files as arguments: errors, checks, and opening paths, bytes and pipes."""

import io
import math
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import BinaryIO

# Outside these limits a sampling rate in Hz is a mistake, or meant to exhaust memory.
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 100, 768_000

# Largest input taken from a pipe, in bytes.
MAX_PIPE_SIZE = 2**32


class MediaError(ValueError):
    """A media file that cannot be used as requested. The message is one line: the path and what is wrong."""


class PastEndError(MediaError):
    """The requested start is past the end of the file."""


@dataclass(frozen=True)
class MediaBytes:
    """
    A media file in memory. Every reader takes it in place of a path.

    Args:
        data (`bytes`): Contents of the whole file.
        name (`str`): Name shown in messages. Its extension helps FFmpeg to detect the format.
    """

    data: bytes = field(repr=False)
    name: str = "bytes"

    def __str__(self) -> str:
        return self.name


# What readers accept. "-" and pipes work as paths.
MediaSource = str | os.PathLike | MediaBytes


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` is a finite number above 0."""
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite number above 0, got {value!r}")


def check_sampling_rate(name: str, value: int) -> int:
    """Return the rate in Hz as an `int`; raise `ValueError` unless it is a whole number from 1 to 768000."""
    check_positive(name, value)
    if value != int(value):
        raise ValueError(f"`{name}` must be a whole number of Hz, got {value!r}")
    if value > MAX_SAMPLING_RATE:
        raise ValueError(f"`{name}` must be at most {MAX_SAMPLING_RATE} Hz, got {value!r}")
    return int(value)


def check_window(start: float, duration: float | None) -> None:
    """Raise `ValueError` unless `start` is 0 or more and `duration` is `None` or above 0, in seconds."""
    if not (isinstance(start, Real) and math.isfinite(start) and start >= 0):
        raise ValueError(f"`start` must be a finite number of seconds, 0 or more, got {start!r}")
    if duration is not None:
        check_positive("duration", duration)


@contextmanager
def open_file(source: MediaSource) -> Iterator[BinaryIO]:
    """
    Open a media file as a seekable binary file.

    A pipe can be read only once, but readers open a file several times. So its contents are copied to a temporary
    file at first use and kept until the process ends. "-" stands for standard input, unless a file has that name.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: The path is missing, a folder, or not readable.
        MediaError: The file is empty, a device or a socket.
    """
    with io.BytesIO(source.data) if isinstance(source, MediaBytes) else _open(source) as file:
        if not file.seek(0, os.SEEK_END):
            raise MediaError(f"{source}: the file is empty")
        file.seek(0)
        yield file


def _open(source: str | os.PathLike) -> BinaryIO:
    path = Path(source)
    if str(path) == "-" and not path.exists():
        path = Path("/dev/stdin")
    try:
        status = path.stat()
    except PermissionError:
        raise PermissionError(f"{source}: file is not readable") from None
    except (OSError, ValueError):
        raise FileNotFoundError(f"{source}: no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{source}: a folder, not a media file")
    if not stat.S_ISFIFO(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{source}: neither a file nor a pipe")
    try:
        return _spooled(path, status, source) if stat.S_ISFIFO(status.st_mode) else open(path, "rb")
    except PermissionError:
        raise PermissionError(f"{source}: file is not readable") from None


# Contents of pipes by device and inode: unlinked temporary files, which disappear with the process.
_pipes: dict[tuple[int, int], BinaryIO] = {}
_pipes_lock = threading.Lock()


def _spooled(path: Path, status: os.stat_result, source: str | os.PathLike) -> BinaryIO:
    key = (status.st_dev, status.st_ino)
    with _pipes_lock:
        if key not in _pipes:
            spool, size = tempfile.TemporaryFile(prefix="audiox-"), 0
            with open(path, "rb") as pipe:
                while block := pipe.read(2**20):
                    size += spool.write(block)
                    if size > MAX_PIPE_SIZE:
                        raise MediaError(f"{source}: the pipe holds more than {MAX_PIPE_SIZE} bytes")
            spool.flush()
            _pipes[key] = spool
    return io.BufferedReader(_IndependentReader(_pipes[key]))


class _IndependentReader(io.RawIOBase):
    """Reads an open file at a position of its own, and leaves it open."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor, self._position = file.fileno(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._descriptor).st_size}
        if start[whence] + offset < 0:
            raise ValueError("negative position")
        self._position = start[whence] + offset
        return self._position
