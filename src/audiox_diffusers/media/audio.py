"""Reading of sound."""

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from .containers import open_media, sound_stream
from .files import (
    MediaError,
    MediaSource,
    PastEndError,
    check_positive,
    check_sampling_rate,
    check_window,
)
from .resample import resample_audio
from .timeline import origin, start_of, timed

# Sounds that decode to the same samples from the middle as from the start, and whose timestamps count samples. Only
# the random numbers differ that decoders of AAC put in place of noise.
SEEKABLE_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "wav", "w64", "aiff", "caf", "flac"}
SEEKABLE_CODECS = {"aac", "alac", "flac"}

# Seconds to decode ahead of the requested time, until a decoder no longer depends on what came before.
SEEK_MARGIN = 1

# Sound that comes this many seconds too late or too early still counts as continuous. Some recorders' clocks are no
# more precise.
TOLERANCE = Fraction(1, 20)


class Chunk(NamedTuple):
    """A piece of sound: float32 `[channels, n]`, its rate in Hz, and its first sample's place on the timeline."""

    samples: np.ndarray
    rate: int
    position: int


def load_audio(
    path: MediaSource,
    sampling_rate: int | None = None,
    channels: int | None = None,
    start: float = 0.0,
    duration: float | None = None,
    max_duration: float = 3600.0,
    max_channels: int = 64,
    max_bytes: int = 2**32,
) -> tuple[torch.Tensor, int]:
    """
    Read the first audio stream of a sound or video file.

    Time counts from the start of the file as players show it: where the sound starts later than the picture, or has
    gaps, there is silence. Encoder delay (the priming samples of MP3, AAC or Opus) is removed as far as the file
    declares it.

    Args:
        path (`str`, `os.PathLike` or [`MediaBytes`]): Sound or video file; "-" and pipes work too.
        sampling_rate (`int`, *optional*): Rate to resample to, in Hz; defaults to the file's rate.
        channels (`int`, *optional*): 1 or 2 to remix; defaults to the file's channels. Mono becomes stereo by
            duplication. Everything else is remixed with FFmpeg's standard matrix, scaled so that no sum of full-scale
            channels can clip: stereo becomes mono as the mean of both.
        start (`float`): First moment to read, in seconds.
        duration (`float`, *optional*): Seconds to read; defaults to the rest of the file. The result is shorter if the
            file ends earlier.
        max_duration (`float`): Longest sound that is read at once, in seconds.
        max_channels (`int`): Largest number of channels the file may have.
        max_bytes (`int`): Largest size of the decoded sound, at four bytes a sample and channel.

    Returns:
        `(waveform, sampling_rate)`: A float32 tensor of shape `[channels, samples]` and its rate in Hz. Integer
        formats are scaled to -1..1; float formats keep their values, which may exceed that range.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: The path is missing, a folder, or not readable.
        MediaError: The file is empty, cut off or not supported, has no audio stream or none that can be decoded, its
            channels cannot be remixed, it exceeds a limit, or `start` is past its end.
        ValueError: An argument is out of range.
    """
    check_window(start, duration)
    if sampling_rate is not None:
        sampling_rate = check_sampling_rate("sampling_rate", sampling_rate)
    if isinstance(channels, bool) or channels not in (None, 1, 2):
        raise ValueError(f"`channels` must be 1, 2 or None, got {channels!r}")
    check_positive("max_duration", max_duration)
    check_positive("max_channels", max_channels)
    check_positive("max_bytes", max_bytes)

    with open_media(path) as container:
        stream = sound_stream(container, path)
        if stream.channels > max_channels:
            raise MediaError(f"{path}: has {stream.channels} channels, more than `max_channels` ({max_channels})")
        if duration is None and stream.duration and stream.duration * stream.time_base - start > max_duration:
            raise _too_long(path, max_duration)
        sought = _seek(container, stream, start)
        with closing(_chunks(container, stream, path, channels, sought)) as chunks:
            waveform, rate = _window(path, chunks, start, duration, max_duration, max_bytes)
    waveform = torch.from_numpy(waveform)
    if channels == 2 and waveform.shape[0] == 1:
        waveform = waveform.repeat(2, 1)
    if sampling_rate is not None:
        waveform, rate = resample_audio(waveform, rate, sampling_rate), sampling_rate
    return waveform, rate


def sound_end(container: InputContainer, stream: AudioStream, path: MediaSource) -> Fraction:
    """Decode a sound to its end and return that moment in seconds on the timeline; 0 if nothing can be decoded."""
    end = Fraction(0)
    for position, frame in _placed(container, stream, path):
        end = Fraction(position + frame.samples, frame.sample_rate)
    return end


def _seek(container: InputContainer, stream: AudioStream, start: float) -> Fraction | None:
    """
    Move ahead of `start` if the sound can be decoded from there exactly.

    Returns:
        The zero of the timeline, in seconds on the file's own clock. `None` if the container is still at its start.
    """
    codec, file_format = stream.codec_context.name, container.format.name
    zero = origin(container)
    if zero is None and codec.startswith("pcm_"):
        zero = Fraction(0)
    if (
        start <= 2 * SEEK_MARGIN
        or zero is None
        or file_format not in SEEKABLE_FORMATS
        or not (codec in SEEKABLE_CODECS or codec.startswith("pcm_"))
        or not stream.rate
        or stream.time_base * stream.rate != 1
        or (stream.duration and start >= stream.duration * stream.time_base)
    ):
        return None
    try:
        container.seek(int((zero + Fraction(start) - SEEK_MARGIN) / stream.time_base), stream=stream)
    except av.FFmpegError:
        return None
    return zero


def _placed(
    container: InputContainer, stream: AudioStream, path: MediaSource, sought: Fraction | None = None
) -> Iterator[tuple[int, AudioFrame]]:
    """
    Yield decoded frames with the place of their first sample on the timeline. Gaps are left between them.

    For `sought` see [`_seek`].
    """
    shift, end, rate = (None if sought is None else Fraction(0)), None, None
    for time, _, frame in timed(container, stream, path, zero=sought):
        if rate not in (None, frame.sample_rate):
            raise MediaError(f"{path}: changes its sampling rate midway")
        rate = frame.sample_rate
        if shift is None:
            # The start that the file declares is exact, a timestamp may be rounded.
            declared = start_of(container, stream)
            shift = Fraction(0) if declared is None or abs(declared - time) > TOLERANCE else declared - time
            end = max(0, round((time + shift) * rate))
        position = round((time + shift) * rate)
        end = position if end is None else end
        if position - end <= TOLERANCE * rate:
            position = end
        yield position, frame
        end = position + frame.samples


def _chunks(
    container: InputContainer, stream: AudioStream, path: MediaSource, channels: int | None, sought: Fraction | None
) -> Iterator[Chunk]:
    """Yield decoded sound. Mono stays mono when 2 channels are requested. For `sought` see [`_seek`]."""
    resampler = count = None
    for position, frame in _placed(container, stream, path, sought):
        if count is None:
            count = frame.layout.nb_channels
            resampler = _remixer(count if channels is None else min(count, channels), frame)
        if count != frame.layout.nb_channels:
            raise MediaError(f"{path}: changes its number of channels midway")
        try:
            converted = resampler.resample(frame)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"{path}: its {count} channels ({frame.layout.name}) cannot be remixed") from error
        for part in converted:
            samples = part.to_ndarray().reshape(-1, part.layout.nb_channels).T
            yield Chunk(samples, part.sample_rate, position)
            position += samples.shape[1]


def _remixer(channels: int, frame: AudioFrame) -> av.AudioResampler:
    layout = frame.layout if channels == frame.layout.nb_channels else {1: "mono", 2: "stereo"}[channels]
    # Interleaved, because PyAV reads past the planes of a planar frame with 8 channels.
    return av.AudioResampler(format="flt", layout=layout, options={"rematrix_maxval": "1.0"})


def _window(
    path: MediaSource,
    chunks: Iterator[Chunk],
    start: float,
    duration: float | None,
    max_duration: float,
    max_bytes: int,
) -> tuple[np.ndarray, int]:
    """Return the samples `[channels, n]` from `start` to `start + duration` seconds, and their rate."""
    kept, end, chunk = [], 0, None
    for chunk in chunks:
        first = round(start * chunk.rate)
        stop = None if duration is None else first + max(1, round(duration * chunk.rate))
        following = chunk.position + chunk.samples.shape[1]
        if min(following, stop or following) - first > max_duration * chunk.rate:
            raise _too_long(path, max_duration)
        if 4 * len(chunk.samples) * (min(following, stop or following) - first) > max_bytes:
            raise MediaError(
                f"{path}: the sound to read takes more than `max_bytes` ({max_bytes}) when decoded; read a part of it"
                " with `start` and `duration`"
            )
        silent = min(chunk.position, stop or chunk.position) - max(end, first)
        if silent > 0:
            kept.append(np.zeros((len(chunk.samples), silent), np.float32))
        wanted = chunk.samples[:, max(0, first - chunk.position) : stop and max(0, stop - chunk.position)]
        if wanted.size:
            kept.append(wanted)
        end = following
        if stop is not None and end >= stop:
            break
    if chunk is None:
        raise MediaError(f"{path}: nothing in its audio stream can be decoded")
    if not kept:
        raise PastEndError(f"{path}: start={start} s is past its end ({end / chunk.rate:.3f} s)")
    return np.concatenate(kept, axis=1), chunk.rate


def _too_long(path: MediaSource, max_duration: float) -> MediaError:
    return MediaError(
        f"{path}: the sound to read is longer than `max_duration` ({max_duration:g} s); read a part of it with `start`"
        " and `duration`"
    )
