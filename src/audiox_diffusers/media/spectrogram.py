"""Mel spectrograms, to compare two sounds or to draw one."""

import math

import numpy as np
import torch
from PIL import Image
from torchaudio.transforms import MelSpectrogram

from .files import check_sampling_rate

# Smallest magnitude, so that silence has a logarithm.
FLOOR = 1e-5

# Levels that a distance takes as silence, in dB below a full-scale tone. Otherwise inaudible noise would decide it.
DISTANCE_RANGE = 60

PICTURE_MELS = 128
PICTURE_HEIGHT = 256
# Range of levels in a picture, in dB below a full-scale tone.
PICTURE_RANGE = 80

# Evenly spaced colours of matplotlib's "magma", from silent to loud. Equal steps in level look equal.
COLOURS = np.array(
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ]
)


def log_mel(waveform: torch.Tensor | np.ndarray, sampling_rate: int, num_mels: int = 64) -> torch.Tensor:
    """
    Compute the log-mel spectrogram of a sound's mono mix.

    Triangular filters on the mel scale (HTK's formula), from 0 to half the sampling rate, sum the magnitudes (not
    powers) of a short-time Fourier transform. Its Hann window is about 64 ms long and moves by a quarter of that. The
    transform is not normalised: a tone of amplitude 1 gives about a quarter of the window's samples.

    Args:
        waveform (`torch.Tensor` or `np.ndarray`): Floating point, shape `[samples]` or `[channels, samples]`.
        sampling_rate (`int`): Sampling rate in Hz.
        num_mels (`int`): Number of mel bands. With 64, no band is empty at rates of 8 kHz and more.

    Returns:
        `torch.Tensor`: float32 of shape `[num_mels, frames]` on the CPU, lowest band first. Values are natural
        logarithms, at least `ln(1e-5)`. There are `samples // hop + 1` frames; frame `i` is centred on sample
        `i * hop`, with silence before and after the sound.

    Raises:
        ValueError: `waveform` is empty or has another shape or type, or `sampling_rate` is out of range.
    """
    sampling_rate = check_sampling_rate("sampling_rate", sampling_rate)
    n_fft = _n_fft(sampling_rate)
    spectrogram = MelSpectrogram(
        sampling_rate,
        n_fft=n_fft,
        hop_length=n_fft // 4,
        n_mels=num_mels,
        power=1,
        pad_mode="constant",  # reflection would fail for sounds shorter than half a window
    )
    return spectrogram(_mono("waveform", waveform)).clamp(min=FLOOR).log()


def log_mel_distance(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray, sampling_rate: int) -> float:
    """
    Compute the mean absolute difference of the log-mel spectrograms of two sounds.

    The mean is over all bands and frames of [`log_mel`], in units of the natural logarithm: 0 for equal sounds, about
    0.7 if one has twice the amplitude of the other. Levels more than 60 dB below a full-scale tone count as silence,
    because noise that nobody hears would decide the distance from digital silence. The order of the sounds does not
    matter. The measure compares spectra, not samples: an inverted sound has distance 0.

    Args:
        a (`torch.Tensor` or `np.ndarray`): Floating point, shape `[samples]` or `[channels, samples]`.
        b (`torch.Tensor` or `np.ndarray`): Another sound with as many samples.
        sampling_rate (`int`): Sampling rate of both in Hz.

    Returns:
        `float`: The distance, 0 or more.

    Raises:
        ValueError: The lengths differ, or [`log_mel`] does not accept a sound or the rate.
    """
    a, b = _mono("a", a), _mono("b", b)
    if len(a) != len(b):
        raise ValueError(f"`a` and `b` must have the same length, got {len(a)} and {len(b)} samples")
    lowest = _loudest(sampling_rate) - _nepers(DISTANCE_RANGE)
    a, b = (log_mel(sound, sampling_rate).clamp(min=lowest) for sound in (a, b))
    return (a - b).abs().mean().item()


def spectrogram_picture(waveform: torch.Tensor | np.ndarray, sampling_rate: int) -> Image.Image:
    """
    Draw a log-mel spectrogram, without axes.

    Time runs from left to right, one column per frame of [`log_mel`]. Low frequencies are at the bottom. Colours span
    a fixed range, from 80 dB below a full-scale tone (black) to a full-scale tone (pale yellow), so pictures of sounds
    with the same sampling rate can be compared.

    Args:
        waveform (`torch.Tensor` or `np.ndarray`): Floating point in -1..1, shape `[samples]` or `[channels, samples]`.
        sampling_rate (`int`): Sampling rate in Hz.

    Returns:
        `PIL.Image.Image`: RGB picture, 256 pixels high.

    Raises:
        ValueError: As [`log_mel`].
    """
    levels = log_mel(waveform, sampling_rate, PICTURE_MELS)
    shares = ((levels - _loudest(sampling_rate)) / _nepers(PICTURE_RANGE) + 1).clamp(0, 1).flip(0).numpy()
    anchors = np.linspace(0, 1, len(COLOURS))
    pixels = np.stack([np.interp(shares, anchors, channel) for channel in COLOURS.T], axis=-1)
    pixels = pixels.round().astype(np.uint8).repeat(PICTURE_HEIGHT // PICTURE_MELS, axis=0)
    return Image.fromarray(pixels)


def _loudest(sampling_rate: int) -> float:
    """Return the level of a full-scale tone in `log_mel`."""
    return math.log(_n_fft(sampling_rate) / 4)


def _nepers(decibels: float) -> float:
    """Convert decibels to the natural logarithm of an amplitude."""
    return decibels / 20 * math.log(10)


def _n_fft(sampling_rate: int) -> int:
    """Return the power of two nearest to 64 ms, on a logarithmic scale."""
    return 2 ** max(2, round(math.log2(0.064 * sampling_rate)))


def _mono(name: str, waveform: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return the mono mix as float32 `[samples]` on the CPU."""
    sound = torch.as_tensor(waveform).detach().cpu()
    if not sound.is_floating_point() or sound.ndim not in (1, 2) or sound.numel() == 0:
        raise ValueError(
            f"`{name}` must be floating point of shape [samples] or [channels, samples], not empty, "
            f"got {sound.dtype} {list(sound.shape)}"
        )
    return sound.float() if sound.ndim == 1 else sound.float().mean(0)
