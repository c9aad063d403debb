"""How long a media file is."""

import os
from fractions import Fraction

import av
from av.container import InputContainer
from av.stream import Stream

from .files import MediaBytes, MediaError, decodable, decode, open_media, picture_stream
from .video import timed


def media_duration(source: str | os.PathLike | MediaBytes) -> float:
    """
    Length of a sound or video file: that of its first audio stream, or of its video stream if it has no sound.

    The length is the one the file declares, if it does, and nothing is decoded; else the stream is decoded to its end.
    A declared length may differ from that of the decoded sound by a codec's block, and by any amount in a file that
    was cut off.

    Args:
        source: Any audio or video file FFmpeg can read, or its bytes.

    Returns:
        Seconds, above 0.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file; it is a folder.
        MediaError: The file is empty, cut off or not media, has neither audio nor video, or none that can be decoded.
    """
    with open_media(source) as container:
        if container.streams.audio:
            stream = decodable(container.streams.audio[0], source)
        else:
            stream = picture_stream(container, source)
        length = _declared(container, stream) or _decoded(container, stream, source)
        if not length:
            raise MediaError(f"{source}: nothing in its {stream.type} stream can be decoded")
        return float(length)


def _declared(container: InputContainer, stream: Stream) -> Fraction | None:
    # Without a header that tells, FFmpeg guesses from the bit rate, which goes wrong where that varies. Such a header
    # holds the encoder's delay too, so that the sound starts later than 0.
    if container.format.name in ("mp3", "aac") and not stream.start_time:
        return None
    if stream.duration:
        return stream.duration * stream.time_base
    # Matroska declares one length for all of its streams, and they may differ.
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None


def _decoded(container: InputContainer, stream: Stream, source: str | os.PathLike | MediaBytes) -> Fraction:
    if stream.type == "audio":
        return sum(Fraction(frame.samples, frame.sample_rate) for frame in decode(container, stream, source))
    return max((time + duration for time, duration, _ in timed(container, stream, source)), default=Fraction(0))
