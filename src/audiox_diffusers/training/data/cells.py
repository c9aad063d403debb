"""Values of the cells of a dataset: media, captions and seconds."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import fsspec

from ...media import MediaBytes
from ...messages import first_line
from .bad_records import BadRecord

# Largest remote file, which is read into memory.
MAX_REMOTE_BYTES = 2**30

Media = str | MediaBytes


class Caption(NamedTuple):
    """A caption, and the seconds of the file that it describes."""

    start: float
    end: float
    text: str


def stored_media(value: Any, name: str) -> Media | None:
    """
    Convert a cell of a dataset to a source for the readers of `audiox_diffusers.media`.

    Args:
        value: A path, the bytes of a file, `{"path": ..., "bytes": ...}`, or `None`.
        name: Name of the column.

    Raises:
        BadRecord: `value` is none of these, or a remote file that cannot be read.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return MediaBytes(value, name)
    if not isinstance(value, Mapping) or not {"bytes", "path"} & set(value):
        raise BadRecord(f"`{name}` must be a path or bytes, got {type(value).__name__}")
    path, data = value.get("path"), value.get("bytes")
    if not isinstance(path, str | None) or not isinstance(data, bytes | None):
        raise BadRecord(f"`{name}` must have a path that is text or bytes, got {type(path or data).__name__}")
    if data is None and path is not None and "://" in path:
        try:
            with fsspec.open(path, "rb") as file:
                data = file.read(MAX_REMOTE_BYTES + 1)
        except Exception as error:  # the type depends on the file system
            raise BadRecord(f"{path}: cannot be read ({type(error).__name__}: {first_line(error)})") from error
        if len(data) > MAX_REMOTE_BYTES:
            raise BadRecord(f"{path}: is larger than {MAX_REMOTE_BYTES} bytes")
    return path if data is None else MediaBytes(data, path or name)


def read_captions(value: Any) -> list[Caption]:
    """
    Read the captions of a row. Blank ones are left out.

    Args:
        value: A caption, a list of them, or `None`. A caption is text, or `{"start": ..., "end": ..., "caption": ...}`.

    Raises:
        BadRecord: A caption is not text, or its seconds are not numbers.
    """
    captions = []
    for text in value if isinstance(value, list) else [value]:
        start, end = 0.0, math.inf
        if isinstance(text, Mapping):
            start = check_seconds(text.get("start"), "caption.start", start)
            end = check_seconds(text.get("end"), "caption.end", end)
            text = text.get("caption")
        if text is None:
            continue
        if not isinstance(text, str):
            raise BadRecord(f"`caption` must be text, got {type(text).__name__}: {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRecord(f"`caption` must be valid Unicode, got {text!r}") from None
        if text.strip():
            captions.append(Caption(start, end, text))
    return captions


def captions_within(captions: list[Caption], start: float, end: float) -> list[int]:
    """Return the numbers of the captions that describe any of the seconds from `start` to `end`."""
    return [number for number, caption in enumerate(captions) if caption.start < end and caption.end > start]


def check_seconds(value: Any, name: str, default: float) -> float:
    """Return `value` as seconds, `default` for `None`. Raise `BadRecord` naming the column if it is not a number."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise BadRecord(f"`{name}` must be seconds, 0 or more, got {value!r}")
    return float(value)
