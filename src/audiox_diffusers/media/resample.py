"""Changing the sampling rate."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
import torch
from torchaudio.functional import resample

from .files import check_sampling_rate

# Largest filter bank that torchaudio computes, in coefficients. It grows with both rates over their common divisor:
# 282,240 for 11025 -> 16000 Hz, but 256 million for 16001 -> 16000 Hz.
_MAX_COEFFICIENTS = 2**22

# Channel layouts by number of channels.
LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")


def resample_audio(waveform: torch.Tensor, orig_rate: int, new_rate: int) -> torch.Tensor:
    """
    Change the sampling rate.

    `torchaudio.functional.resample` does it, except for pairs of rates that would need a huge filter bank, such as
    16001 and 16000 Hz. FFmpeg resamples those, on the CPU in float32 and without a gradient.

    Args:
        waveform (`torch.Tensor`): Floating point, shape `[..., samples]`.
        orig_rate (`int`): Its sampling rate in Hz.
        new_rate (`int`): Requested sampling rate in Hz.

    Returns:
        `torch.Tensor`: Shape `[..., ceil(samples * new_rate / orig_rate)]`; `waveform` itself if the rates are equal.

    Raises:
        ValueError: A rate is not a whole number from 1 to 768000.
    """
    orig_rate = check_sampling_rate("orig_rate", orig_rate)
    new_rate = check_sampling_rate("new_rate", new_rate)
    if orig_rate == new_rate:
        return waveform
    divisor = math.gcd(orig_rate, new_rate)
    if (orig_rate // divisor) * (new_rate // divisor) <= _MAX_COEFFICIENTS:
        return resample(waveform, orig_rate, new_rate)
    rows = waveform.detach().float().cpu().reshape(-1, 1, waveform.shape[-1]).numpy()
    length = math.ceil(waveform.shape[-1] * new_rate / orig_rate)
    resampled = np.zeros((len(rows), length), np.float32)
    for row, target in zip(rows, resampled):
        whole = np.concatenate(list(resample_pieces([row], orig_rate, new_rate)), axis=1)[0, :length]
        target[: len(whole)] = whole
    return torch.from_numpy(resampled).reshape(*waveform.shape[:-1], length).to(waveform)


def resample_pieces(pieces: Iterable[np.ndarray], orig_rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """
    Change the sampling rate of a waveform that comes in pieces, with FFmpeg.

    Args:
        pieces: float32 arrays of shape `[channels, samples]` with 1 to 8 channels, one after the other.
        orig_rate (`int`): Their sampling rate in Hz.
        new_rate (`int`): Requested sampling rate in Hz.

    Yields:
        float32 arrays `[channels, samples]`: joined, the resampled waveform without delay.
    """
    resampler, written = None, 0
    for piece in pieces:
        layout = LAYOUTS[len(piece) - 1]
        resampler = resampler or av.AudioResampler(format="flt", layout=layout, rate=new_rate)
        for begin in range(0, piece.shape[1], orig_rate):
            part = np.ascontiguousarray(piece[:, begin : begin + orig_rate].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = orig_rate, Fraction(1, orig_rate), written
            written += part.size // len(piece)
            yield from map(_array, resampler.resample(frame))
    if resampler is not None:
        yield from map(_array, resampler.resample(None))


def _array(frame: av.AudioFrame) -> np.ndarray:
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T
