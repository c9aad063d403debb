"""Durations of media files."""

from fractions import Fraction
from typing import Literal

import av
from av.container import InputContainer
from av.stream import Stream

from .audio import sound_end
from .containers import open_media, picture_stream, sound_stream
from .files import MediaError, MediaSource
from .image import animation, open_image
from .timeline import start_of
from .video import is_picture, timed_frames


def media_duration(source: MediaSource, kind: Literal["sound", "picture"] | None = None) -> float:
    """
    Return the time at which the sound or the picture of a file ends.

    Time counts from the start of the file as players show it, as in [`load_audio`] and [`load_video`]. The file's own
    declaration is used if it has one; else the stream is decoded to its end. A declared duration may differ from the
    decoded one by a codec's block, and by any amount in a file that was cut off.

    Args:
        source (`str`, `os.PathLike` or [`MediaBytes`]): Sound or video file, or a picture; "-" and pipes work too.
        kind (`str`, *optional*): `"sound"` for the first audio stream, `"picture"` for the video stream. Defaults to
            the sound if there is one, else the picture.

    Returns:
        `float`: Seconds, above 0.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: The path is missing, a folder, or not readable.
        MediaError: The file is empty, cut off or not supported, lacks the stream, or nothing in it can be decoded.
        ValueError: `kind` is unknown.
    """
    if kind not in (None, "sound", "picture"):
        raise ValueError(f"`kind` must be 'sound', 'picture' or None, got {kind!r}")
    if kind != "sound" and is_picture(source):
        with open_image(source) as image:
            return float(sum(duration for _, duration, _ in animation(image, source)))
    with open_media(source) as container:
        if kind == "sound" or (kind is None and container.streams.audio):
            stream = sound_stream(container, source)
        else:
            stream = picture_stream(container, source)
        end = _declared(container, stream) or _decoded(container, stream, source)
        if not end:
            raise MediaError(f"{source}: nothing in its {stream.type} stream can be decoded")
        return float(end)


def _declared(container: InputContainer, stream: Stream) -> Fraction | None:
    # Without a header, FFmpeg guesses from the bit rate, which is wrong where that varies. A header also holds the
    # encoder's delay, which makes the sound start later than 0.
    if container.format.name in ("mp3", "aac") and not stream.start_time:
        return None
    if stream.duration:
        return (start_of(container, stream) or 0) + stream.duration * stream.time_base
    # Matroska declares one duration for all of its streams, and they may differ.
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None


def _decoded(container: InputContainer, stream: Stream, source: MediaSource) -> Fraction:
    if stream.type == "audio":
        return sound_end(container, stream, source)
    return max((time + duration for time, duration, _ in timed_frames(container, stream, source)), default=Fraction(0))
