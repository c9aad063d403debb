"""Reading and resampling of audio."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import closing

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from torchaudio.functional import resample

from .files import (
    MediaBytes,
    MediaError,
    PastEndError,
    check_sampling_rate,
    check_window,
    decodable,
    decode,
    open_media,
)


def load_audio(
    path: str | os.PathLike | MediaBytes,
    sampling_rate: int | None = None,
    channels: int | None = None,
    start: float = 0.0,
    duration: float | None = None,
) -> tuple[torch.Tensor, int]:
    """
    Read the first audio stream of an audio or video file.

    Encoder delay (the priming samples of MP3, AAC or Opus) is left out as far as the file declares it.

    Args:
        path: Any audio or video file FFmpeg can read, or its bytes.
        sampling_rate: Rate to resample to, in Hz; `None` keeps the file's.
        channels: 1 or 2 to remix, `None` to keep the file's channels. Mono becomes stereo by plain duplication. All
            else is remixed with FFmpeg's standard matrix, scaled so that no sum of full-scale channels can clip:
            stereo becomes mono as the mean of both.
        start: First moment to read, in seconds from the first sample.
        duration: Length to read, in seconds; `None` reads to the end. The result is shorter if the file is.

    Returns:
        `(waveform, sampling_rate)`: a float32 tensor of shape `[channels, samples]`, and its rate in Hz. Integer
        formats are scaled to -1..1; float formats are kept as they are and may go beyond.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file; it is a folder.
        MediaError: The file is empty, cut off or not media, has no audio stream or none that can be decoded, its
            channels cannot be remixed, or `start` lies beyond its end.
        ValueError: An argument is out of range.
    """
    check_window(start, duration)
    if sampling_rate is not None:
        sampling_rate = check_sampling_rate("sampling_rate", sampling_rate)
    if channels not in (None, 1, 2):
        raise ValueError(f"`channels` must be 1, 2 or None, got {channels!r}")

    with closing(_chunks(path, channels)) as chunks:
        waveform, rate = _window(path, chunks, start, duration)
    waveform = torch.from_numpy(waveform)
    if channels == 2 and waveform.shape[0] == 1:
        waveform = waveform.repeat(2, 1)
    if sampling_rate is not None:
        waveform, rate = resample_audio(waveform, rate, sampling_rate), sampling_rate
    return waveform, rate


def resample_audio(waveform: torch.Tensor, orig_rate: int, new_rate: int) -> torch.Tensor:
    """
    Change the sampling rate with `torchaudio.functional.resample`.

    Args:
        waveform: Float tensor of shape `[..., samples]`.
        orig_rate: Its rate in Hz.
        new_rate: The rate wanted, in Hz.

    Returns:
        Tensor of shape `[..., ceil(samples * new_rate / orig_rate)]`; `waveform` itself if the rates are equal.

    Raises:
        ValueError: A rate is not a whole number above 0.
    """
    orig_rate = check_sampling_rate("orig_rate", orig_rate)
    new_rate = check_sampling_rate("new_rate", new_rate)
    if orig_rate == new_rate:
        return waveform
    return resample(waveform, orig_rate, new_rate)


def resample_pieces(pieces: Iterable[torch.Tensor], orig_rate: int, new_rate: int) -> Iterator[torch.Tensor]:
    """
    [`resample_audio`] for a sound that comes in pieces: what is given, joined, is the resampled whole, and at any time
    a second or so of it is in memory.

    Args:
        pieces: Float tensors of shape `[channels, samples]`, one after the other.
        orig_rate, new_rate: As in [`resample_audio`].
    """
    if orig_rate == new_rate:
        yield from pieces
        return
    # Where both rates come full circle. The filter reaches less far than `halo`, six samples of the lower rate.
    period = orig_rate // math.gcd(orig_rate, new_rate)
    halo = period * math.ceil(8 * max(1, orig_rate / new_rate) / period)
    block = period * math.ceil(orig_rate / period)
    held, before = None, 0
    for piece in pieces:
        held = piece if held is None else torch.cat((held, piece), dim=-1)
        while held.shape[-1] >= before + block + halo:
            resampled = resample_audio(held[..., : before + block + halo], orig_rate, new_rate)
            first = before // period * (new_rate * period // orig_rate)
            yield resampled[..., first : first + block // period * (new_rate * period // orig_rate)]
            held, before = held[..., before + block - halo :], halo
    if held is not None:
        yield resample_audio(held, orig_rate, new_rate)[..., before // period * (new_rate * period // orig_rate) :]


def _chunks(path: str | os.PathLike | MediaBytes, channels: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Decoded float32 samples `[channels, n]` with their rate; mono is left mono when 2 channels are asked for."""
    with open_media(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: has no audio stream")
        stream = decodable(container.streams.audio[0], path)
        resampler = form = None
        for frame in decode(container, stream, path):
            count = frame.layout.nb_channels
            if form is None:
                form = (count, frame.sample_rate)
                resampler = _resampler(count if channels is None else min(count, channels), frame)
            if form != (count, frame.sample_rate):
                raise MediaError(f"{path}: changes its sampling rate or channels midway")
            try:
                converted = resampler.resample(frame)
            except (av.FFmpegError, ValueError) as error:
                raise MediaError(f"{path}: its {count} channels ({frame.layout.name}) cannot be remixed") from error
            for part in converted:
                yield part.to_ndarray().reshape(-1, part.layout.nb_channels).T, part.sample_rate


def _resampler(channels: int, frame: AudioFrame) -> av.AudioResampler:
    layout = frame.layout if channels == frame.layout.nb_channels else {1: "mono", 2: "stereo"}[channels]
    # Interleaved, since PyAV reads beyond the planes of a planar frame of 8 channels.
    return av.AudioResampler(format="flt", layout=layout, options={"rematrix_maxval": "1.0"})


def _window(
    path: str | os.PathLike | MediaBytes,
    chunks: Iterator[tuple[np.ndarray, int]],
    start: float,
    duration: float | None,
) -> tuple[np.ndarray, int]:
    """Samples `[channels, n]` between `start` and `start + duration` seconds, with their rate."""
    kept, seen, first, stop, rate = [], 0, 0, None, None
    for samples, rate in chunks:
        first = round(start * rate)
        stop = None if duration is None else first + max(1, round(duration * rate))
        wanted = samples[:, max(0, first - seen) : None if stop is None else stop - seen]
        if wanted.size:
            kept.append(wanted)
        seen += samples.shape[1]
        if stop is not None and seen >= stop:
            break
    if rate is None:
        raise MediaError(f"{path}: nothing in its audio stream can be decoded")
    if seen <= first:
        raise PastEndError(f"{path}: start={start} s lies beyond its end ({seen / rate:.3f} s)")
    return np.concatenate(kept, axis=1), rate
