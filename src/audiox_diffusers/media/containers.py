"""Opening and decoding of sound and video files with FFmpeg."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.frame import Frame
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from .files import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE, MediaError, MediaSource, open_file

logger = logging.getLogger(__name__)

av.logging.set_level(None)

# FFmpeg's names of the formats that are read. Formats that lead to other files, such as playlists, must never be added.
DEMUXERS = (
    *("aac", "ac3", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "mp3", "mpc", "mpc8", "tta", "voc"),
    *("w64", "wav", "wv", "asf", "av1", "avi", "dv", "flv", "h264", "hevc", "ivf", "m4v", "matroska,webm", "mjpeg"),
    *("mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "vc1", "wtv"),
    "yuv4mpegpipe",
)

# Largest video frame that is decoded by default, in pixels: twice 8K.
MAX_FRAME_PIXELS = 2**26

# Bytes of a WAV file that FFmpeg reads while it opens it.
WAV_PROBE = "65536"

# Seconds missing between two frames of sound that are reported as a gap.
LONGEST_GAP = 0.1


@contextmanager
def open_media(source: MediaSource, max_pixels: int = MAX_FRAME_PIXELS) -> Iterator[InputContainer]:
    """
    Open a sound or video file for reading.

    FFmpeg gets the opened file instead of its name, may use no protocol and only the formats in `DEMUXERS`. So a file
    cannot make it open another file or the network.

    Args:
        source: Path, bytes or pipe.
        max_pixels (`int`): Largest width times height that decoders accept.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError, MediaError: As [`open_file`]; `MediaError` also if the
            contents are not a supported format.
    """
    container_options = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "none"}
    # Decoders count rows and columns that are cropped later. `picture_stream` checks the exact size.
    options = {"max_pixels": str(2 * int(max_pixels) + 2**16)}
    with open_file(source) as file:
        for_container, for_decoders = _shortcuts(file)
        try:
            container = av.open(
                _Input(file, Path(str(source)).suffix),
                metadata_errors="replace",
                container_options=container_options | for_container,
                options=options | for_decoders,
            )
        except av.FFmpegError:
            raise MediaError(f"{source}: {_reason(file)}") from None
        with container:
            for stream in container.streams.video:
                if stream.codec_context is not None:
                    stream.codec_context.options = options
            yield container


class _Input:
    """A file as PyAV reads it. FFmpeg sees no name but the extension."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self.name = f"input{suffix}" if suffix[1:].isalnum() else "input"
        self._file, self.read, self.tell = file, file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):  # a damaged file points before its own start
            return -errno.EINVAL


def _shortcuts(file: BinaryIO) -> tuple[dict[str, str], dict[str, str]]:
    """
    Return options for the container and its decoders while FFmpeg opens a file.

    FFmpeg would decode a frame of H.264, or read 5 MB of PCM, to find what the headers of MP4 and WAV files say.
    """
    start = file.read(12)
    file.seek(0)
    if start[4:8] == b"ftyp":
        return {}, {"skip_frame": "all"}
    if start[:4] in (b"RIFF", b"RF64") and start[8:] == b"WAVE":
        return {"probesize": WAV_PROBE}, {}
    return {}, {}


def _reason(file: BinaryIO) -> str:
    """Say why FFmpeg refused a file."""
    file.seek(0)
    start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(PLAYLISTS):
        return "a playlist, which is not read because it leads to other files"
    return "not a sound or video file of a supported format, or cut off"


# How playlists start, for a clear message. What keeps them out is the list of formats.
PLAYLISTS = (b"#extm3u", b"ffconcat", b"file ", b"v=0", b"<?xml", b"<mpd", b"<asx", b"[playlist]", b"http:", b"https:")


def sound_stream(container: InputContainer, source: MediaSource) -> AudioStream:
    """Return the first audio stream; raise `MediaError` if it is missing, cannot be decoded or has an absurd rate."""
    if not container.streams.audio:
        raise MediaError(f"{source}: has no audio stream")
    stream = decodable(container.streams.audio[0], source)
    if stream.rate and not MIN_SAMPLING_RATE <= stream.rate <= MAX_SAMPLING_RATE:
        raise MediaError(
            f"{source}: its sampling rate is {stream.rate} Hz, outside {MIN_SAMPLING_RATE}..{MAX_SAMPLING_RATE} Hz"
        )
    return stream


def picture_stream(container: InputContainer, source: MediaSource, max_pixels: int = MAX_FRAME_PIXELS) -> VideoStream:
    """Return the first video stream that is not a cover picture; raise `MediaError` if none can be decoded."""
    for stream in picture_streams(container):
        context = decodable(stream, source).codec_context
        if context.width * context.height > max_pixels:
            raise MediaError(
                f"{source}: its picture has {context.width}x{context.height} pixels, more than `max_pixels`"
                f" ({max_pixels})"
            )
        return stream
    raise MediaError(f"{source}: has no video stream")


def decodable(stream: Stream, source: MediaSource) -> Stream:
    """Return the stream; raise `MediaError` if FFmpeg has no decoder for it."""
    if stream.codec_context is None:
        raise MediaError(f"{source}: no decoder for its {stream.type} stream")
    return stream


def picture_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams that are not cover pictures."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


# Passes packets on, after it has set the decoder for each.
Choose = Callable[[Iterator[av.Packet]], Iterator[av.Packet]]


def decode(
    container: InputContainer, stream: Stream, source: MediaSource, choose: Choose | None = None
) -> Iterator[Frame]:
    """
    Yield every frame that can be decoded, in order. One warning reports damage and gaps.

    Args:
        container, stream: Where to read from, at the container's position.
        source: Name of the file, for the warning.
        choose: Sets the decoder for each packet, for example to skip frames.
    """
    warned, expected, time_base = False, None, stream.time_base

    def warn() -> None:
        nonlocal warned
        if not warned:
            logger.warning(
                f"{source}: the file is damaged or has gaps; missing sound is silent, missing frames are held."
            )
        warned = True

    def packets() -> Iterator[av.Packet]:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
        except av.FFmpegError:
            warn()

    for packet in chain(packets() if choose is None else choose(packets()), [None]):
        if packet is not None and packet.is_corrupt and not _ends_anywhere(stream, source):
            warn()
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            warn()
            continue
        for frame in frames:
            if isinstance(frame, AudioFrame) and frame.pts is not None:
                if expected is not None and (frame.pts - expected) * time_base > LONGEST_GAP:
                    warn()
                expected = frame.pts + frame.samples / frame.sample_rate / time_base
            yield frame


def _ends_anywhere(stream: Stream, source: MediaSource) -> bool:
    """
    Tell whether a file of PCM sound was written to a pipe, so that its header could not give a size.

    FFmpeg takes the last packet of a WAV or CAF file for corrupt then, although nothing is missing.
    """
    if not stream.codec_context.name.startswith("pcm_"):
        return False
    with open_file(source) as file:
        head = file.read(2**16)
    at = head.find(b"data") + 4
    order = "big" if head.startswith(b"caff") else "little"
    size = int.from_bytes(head[at : at + 4], order)
    return at >= 4 and (size == 0 or size >= 0x7FFF0000)
