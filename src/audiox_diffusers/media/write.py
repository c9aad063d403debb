"""Writing of audio and video files."""

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from diffusers.utils import logging

from ..atomic import check_target, replacing
from .audio import resample_pieces
from .files import (
    MediaError,
    check_positive,
    check_sampling_rate,
    open_media,
    picture_stream,
)
from .formats import AUDIO_FORMATS, VIDEO_FORMATS

logger = logging.get_logger(__name__)

Waveform = torch.Tensor | np.ndarray

BIT_RATES = {"aac": 192_000, "libmp3lame": 192_000, "libopus": 128_000}
MOST_CHANNELS = {"libmp3lame": 2, "libopus": 2}
LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")


def save_audio(
    path: str | os.PathLike,
    waveform: Waveform | Iterable[Waveform],
    sampling_rate: int,
    bit_rate: int | None = None,
) -> None:
    """
    Write sound to a file, in the format its extension names.

    `.wav` and `.flac` hold 16-bit samples; `.mp3`, `.ogg` and `.opus` (both Opus), and `.m4a` (AAC) are lossy, and
    their sound is resampled if the codec does not know its rate. `.mp3`, `.ogg` and `.opus` hold 1 or 2 channels. The
    file appears only when it is complete; on any error what was there before is left as it was.

    Args:
        path: Where to write; an existing file is replaced.
        waveform: Floating point, shape `[samples]` or `[channels, samples]` with 1 to 8 channels, in -1..1, or an
            iterable of such pieces, each of which is written before the next one is asked for. What lies beyond is
            clipped, with a warning.
        sampling_rate: In Hz.
        bit_rate: Of a lossy format, in bits a second; by default 192000 for MP3 and AAC, 128000 for Opus. Encoders
            take the nearest one they know.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: The folder is missing, no folder, or not writable.
        IsADirectoryError: `path` is a folder.
        ValueError: The extension is unknown, `waveform` is empty, has another shape or type, or holds NaN or infinity,
            the format cannot hold that many channels, `sampling_rate` is not a whole number above 0, or `bit_rate`
            is not one, or given for a lossless format.
    """
    path = Path(path)
    muxer, codec = _format(path, AUDIO_FORMATS)
    if bit_rate is not None:
        check_positive("bit_rate", bit_rate)
        if codec not in BIT_RATES:
            raise ValueError(f"`bit_rate` is for lossy formats, got {bit_rate!r} for {path.suffix}")
    check_target(path)
    rate = check_sampling_rate("sampling_rate", sampling_rate)
    channels, pieces = _pieces(waveform)
    most = MOST_CHANNELS.get(codec, len(LAYOUTS))
    if channels > most:
        raise ValueError(f"`waveform` has {channels} channels, but {path.suffix} holds at most {most}")
    with replacing(path) as temporary, av.open(str(temporary), "w", format=muxer) as target:
        for packet in _add_sound(target, codec, channels, pieces, rate, bit_rate):
            target.mux(packet)


def save_video(
    path: str | os.PathLike,
    video: str | os.PathLike | torch.Tensor | np.ndarray,
    waveform: Waveform | Iterable[Waveform] | None = None,
    sampling_rate: int = 44100,
    fps: float | None = None,
) -> None:
    """
    Write a video with new sound.

    The picture of a video file is copied as it is: every packet, byte for byte, timed from the first frame shown, with
    its rotation. Of the source's other streams (its sound above all) nothing is kept. Frames are encoded as H.264
    (yuv420p, BT.709); an odd height or width grows by one repeated row or column. The sound is encoded as AAC, and
    neither picture nor sound is cut to the other's length. The file appears only when it is complete; on any error
    what was there before is left as it was.

    Args:
        path: Where to write: `.mp4`, `.mov` or `.mkv`. An existing file is replaced; it may be `video` itself.
        video: Path of a video file, or frames: a tensor `[frames, 3, height, width]` or an array
            `[frames, height, width, 3]`, RGB, uint8 or floating point in 0..1.
        waveform: Floating point, shape `[samples]` or `[channels, samples]` with 1 to 8 channels, in -1..1, beginning
            with the first frame, or an iterable of such pieces. What lies beyond -1..1 is clipped, with a warning.
            `None` writes no sound.
        sampling_rate: Of `waveform`, in Hz.
        fps: Frames per second, for frames only.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError: As [`save_audio`]; for a `video`
            path as [`load_video`].
        MediaError: `video` cannot be read or has no picture, or the container of `path` cannot hold its picture.
        ValueError: The extension is unknown, `fps` is missing for frames or given for a path, or `video`, `waveform`,
            `sampling_rate` or `fps` is out of range.
    """
    path = Path(path)
    muxer = _format(path, VIDEO_FORMATS)
    check_target(path)
    rate = check_sampling_rate("sampling_rate", sampling_rate)
    if waveform is not None:
        channels, pieces = _pieces(waveform)
    copied = isinstance(video, (str, os.PathLike))
    if copied and fps is not None:
        raise ValueError("`fps` is for frames only: the picture of a video file keeps its timing")
    if not copied:
        frames, frame_rate = _frames(video), _frame_rate(fps)

    with ExitStack() as stack:
        source = stack.enter_context(open_media(video)) if copied else None
        temporary = stack.enter_context(replacing(path))
        target = stack.enter_context(av.open(str(temporary), "w", format=muxer))
        if copied:
            tracks = [_add_copied_picture(target, source, video, path.suffix.lower())]
        else:
            tracks = [_add_encoded_picture(target, frames, frame_rate)]
        if waveform is not None:
            tracks.append(_add_sound(target, "aac", channels, pieces, rate))
        if copied:
            try:
                target.start_encoding()
            except av.FFmpegError as error:
                raise _unfit(video, path.suffix.lower()) from error
        for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)


def _format(path: Path, formats: dict) -> tuple[str, str] | str:
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise ValueError(f"{path}: unknown extension {path.suffix!r}, use one of {', '.join(formats)}")
    return formats[suffix]


def _array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """As a numpy array; floating point of any precision as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return values.astype(np.float32, copy=False) if np.issubdtype(values.dtype, np.floating) else values


def _pieces(waveform: Waveform | Iterable[Waveform]) -> tuple[int, Iterator[np.ndarray]]:
    """Channels of a sound, whole or in pieces, and its pieces, checked and clipped. The first one is checked now."""
    pieces = _clipped([waveform] if isinstance(waveform, Waveform) else waveform)
    first = next(pieces, None)
    if first is None:
        raise ValueError("`waveform` is empty")
    return len(first), itertools.chain([first], pieces)


def _clipped(pieces: Iterable[Waveform]) -> Iterator[np.ndarray]:
    """Checked float32 `[channels, samples]`, clipped to -1..1; a warning at the end if that changed anything."""
    channels, beyond, size, peak = None, 0, 0, 0.0
    for piece in pieces:
        sound = _samples(piece)
        if channels not in (None, len(sound)):
            raise ValueError(f"`waveform` has pieces of {channels} and of {len(sound)} channels")
        level = np.abs(sound)
        channels, size = len(sound), size + sound.size
        beyond, peak = beyond + int((level > 1).sum()), max(peak, float(level.max()))
        yield sound.clip(-1, 1)
    if beyond:
        logger.warning(f"{beyond} of {size} samples lie beyond -1..1 (peak {peak:.3f}) and were clipped.")


def _samples(waveform: Waveform) -> np.ndarray:
    """Checked float32 `[channels, samples]`."""
    sound = np.atleast_2d(_array(waveform))
    if sound.dtype != np.float32:
        raise ValueError(f"`waveform` must be floating point in -1..1, got {sound.dtype}")
    if sound.ndim != 2 or not 1 <= sound.shape[0] <= len(LAYOUTS):
        raise ValueError(
            f"`waveform` must have the shape [samples] or [channels, samples] with 1 to {len(LAYOUTS)} channels, "
            f"got {list(waveform.shape)}"
        )
    if sound.shape[1] == 0:
        raise ValueError("`waveform` is empty")
    if not np.isfinite(sound).all():
        raise ValueError("`waveform` holds NaN or infinite values")
    return sound


def _add_sound(
    target: OutputContainer,
    codec: str,
    channels: int,
    pieces: Iterator[np.ndarray],
    rate: int,
    bit_rate: int | None = None,
) -> Iterator[Packet]:
    """Add a sound stream to `target`; gives its packets, to be muxed once all streams are there."""
    known_rates = av.Codec(codec, "w").audio_rates
    if known_rates and rate not in known_rates:
        better = min((known for known in known_rates if known > rate), default=max(known_rates))
        resampled = resample_pieces(map(torch.from_numpy, pieces), rate, better)
        pieces = (piece.clamp(-1, 1).numpy() for piece in resampled)
        rate = better
    layout = LAYOUTS[channels - 1]
    stream = target.add_stream(codec, rate=rate, layout=layout)
    if codec in BIT_RATES:
        stream.bit_rate = int(bit_rate or BIT_RATES[codec])
    return _sound_packets(stream, pieces, rate, layout)


def _sound_packets(stream: AudioStream, pieces: Iterator[np.ndarray], rate: int, layout: str) -> Iterator[Packet]:
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


def _add_copied_picture(
    target: OutputContainer, source: InputContainer, video: str | os.PathLike, suffix: str
) -> Iterator[Packet]:
    """Add a copy of the source's picture stream to `target`; gives its packets."""
    template = picture_stream(source, video)
    try:
        stream = target.add_stream_from_template(template, opaque=True)
    except ValueError as error:
        raise _unfit(video, suffix) from error
    if template.codec_context.codec_tag == "hvc1" and suffix != ".mkv":
        stream.codec_context.codec_tag = "hvc1"
    return _copied_packets(source, template, stream, video, suffix)


def _copied_packets(
    source: InputContainer, template: VideoStream, stream: VideoStream, video: str | os.PathLike, suffix: str
) -> Iterator[Packet]:
    origin = template.start_time
    try:
        for packet in _with_decoding_times(source.demux(template)):
            if packet.pts is None:
                raise MediaError(f"{video}: its frames carry no timestamps and cannot be copied")
            if packet.is_discard and suffix == ".mkv":
                raise MediaError(
                    f"{video}: hides frames by an edit list, which .mkv cannot hold; save as .mp4 instead"
                )
            origin = packet.pts if origin is None else origin
            packet.pts -= origin
            packet.dts -= origin
            packet.stream = stream
            yield packet
    except av.FFmpegError as error:
        raise MediaError(f"{video}: the file is damaged, its picture cannot be copied ({error.strerror})") from error


def _with_decoding_times(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Packets with data, those without a decoding time (Matroska, before reordered frames) timed from the next one."""
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


def _unfit(video: str | os.PathLike, suffix: str) -> MediaError:
    hint = "" if suffix == ".mkv" else ", try .mkv"
    return MediaError(f"{video}: {suffix} cannot hold its picture codec{hint}")


def _frames(video: torch.Tensor | np.ndarray) -> np.ndarray:
    """Checked uint8 RGB `[frames, height, width, 3]`."""
    frames = _array(video)
    if isinstance(video, torch.Tensor) and video.ndim == 4:
        frames = np.moveaxis(frames, 1, -1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            "`video` must be a path, a tensor [frames, 3, height, width] or an array [frames, height, width, 3], "
            f"got the shape {list(video.shape)}"
        )
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype != np.float32 or not 0 <= frames.min() <= frames.max() <= 1:
        raise ValueError("`video` frames must be uint8, or floating point in 0..1")
    return (frames * 255).round().astype(np.uint8)


def _frame_rate(fps: float | None) -> Fraction:
    if fps is None:
        raise ValueError("`fps` must be given with frames")
    check_positive("fps", fps)
    rate = Fraction(str(float(fps))).limit_denominator(1001)
    if rate == 0:
        raise ValueError(f"`fps` is too small: {fps!r}")
    return rate


def _add_encoded_picture(target: OutputContainer, frames: np.ndarray, frame_rate: Fraction) -> Iterator[Packet]:
    """Add an H.264 stream of the frames to `target`; gives its packets."""
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
