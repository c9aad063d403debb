"""Tracks of a file to write: each function adds a stream and returns an iterator over its packets."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from .containers import picture_stream
from .files import MediaError, MediaSource
from .resample import LAYOUTS, resample_pieces
from .timeline import origin

# Default bit rates of lossy encoders, in bits per second.
BIT_RATES = {"aac": 192_000, "libmp3lame": 192_000, "libopus": 128_000}


def add_sound(
    target: OutputContainer,
    codec: str,
    channels: int,
    pieces: Iterator[np.ndarray],
    rate: int,
    bit_rate: int | None = None,
) -> Iterator[Packet]:
    """Add sound. A rate that the codec does not know is converted to the next higher one."""
    known_rates = av.Codec(codec, "w").audio_rates
    if known_rates and rate not in known_rates:
        better = min((known for known in known_rates if known > rate), default=max(known_rates))
        pieces = (piece.clip(-1, 1) for piece in resample_pieces(pieces, rate, better))
        rate = better
    layout = LAYOUTS[channels - 1]
    stream = target.add_stream(codec, rate=rate, layout=layout)
    if codec in BIT_RATES:
        stream.bit_rate = int(bit_rate or BIT_RATES[codec])
    return _sound_packets(stream, pieces, rate, layout)


def _sound_packets(stream: AudioStream, pieces: Iterable[np.ndarray], rate: int, layout: str) -> Iterator[Packet]:
    written = 0
    for sound in pieces:
        for begin in range(0, sound.shape[1], rate):
            part, form = sound[:, begin : begin + rate].T.reshape(1, -1), "flt"
            if stream.codec_context.format.name == "s16":
                part, form = (part * 32768).round().clip(-32768, 32767).astype(np.int16), "s16"
            frame = AudioFrame.from_ndarray(part, format=form, layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), written + begin
            yield from stream.encode(frame)
        written += sound.shape[1]
    yield from stream.encode(None)


def add_copied_picture(
    target: OutputContainer, source: InputContainer, video: MediaSource, suffix: str
) -> Iterator[Packet]:
    """Add a copy of the source's picture, packet by packet, at its place on the source's timeline."""
    template = picture_stream(source, video)
    try:
        stream = target.add_stream_from_template(template, opaque=True)
    except ValueError as error:
        raise does_not_fit(video, suffix) from error
    if template.codec_context.codec_tag == "hvc1" and suffix != ".mkv":
        stream.codec_context.codec_tag = "hvc1"
    return _copied_packets(source, template, stream, video, suffix)


def _copied_packets(
    source: InputContainer, template: VideoStream, stream: VideoStream, video: MediaSource, suffix: str
) -> Iterator[Packet]:
    start = origin(source)
    zero = None if start is None else round(start / template.time_base)
    try:
        for packet in _with_decoding_times(source.demux(template)):
            if packet.pts is None:
                raise MediaError(f"{video}: its frames have no timestamps and cannot be copied")
            if packet.is_discard and suffix == ".mkv":
                raise MediaError(
                    f"{video}: hides frames by an edit list, which .mkv cannot hold; save as .mp4 instead"
                )
            zero = packet.pts if zero is None else zero
            packet.pts -= zero
            packet.dts -= zero
            packet.stream = stream
            yield packet
    except av.FFmpegError as error:
        raise MediaError(f"{video}: the file is damaged, its picture cannot be copied ({error.strerror})") from error


def _with_decoding_times(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Yield the packets with data. Matroska stores no decoding time before reordered frames; the next packet gives it."""
    untimed = []
    for packet in packets:
        if packet.size and packet.dts is None:
            untimed.append(packet)
            continue
        following = packet.dts
        for earlier in reversed(untimed):
            if earlier.pts is not None:
                earlier.dts = (
                    earlier.pts if following is None else min(earlier.pts, following - max(earlier.duration, 1))
                )
            following = earlier.dts
        yield from untimed
        untimed = []
        if packet.size:
            yield packet


def does_not_fit(video: MediaSource, suffix: str) -> MediaError:
    """Return the error for a codec that a container cannot hold."""
    hint = "" if suffix == ".mkv" else ", try .mkv"
    return MediaError(f"{video}: {suffix} cannot hold its picture codec{hint}")


def add_encoded_picture(target: OutputContainer, frames: np.ndarray, frame_rate: Fraction) -> Iterator[Packet]:
    """Add uint8 RGB frames `[frames, height, width, 3]` as H.264."""
    height, width = frames.shape[1:3]
    stream = target.add_stream("libx264", rate=frame_rate, options={"crf": "18"})
    stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
    context.color_range = ColorRange.MPEG
    return _encoded_packets(stream, frames, frame_rate)


def _encoded_packets(stream: VideoStream, frames: np.ndarray, frame_rate: Fraction) -> Iterator[Packet]:
    _, height, width, _ = frames.shape
    for index, pixels in enumerate(frames):
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = index, 1 / frame_rate
        yield from stream.encode(frame)
    yield from stream.encode(None)
