"""Convert the videos, images and sounds that users pass to tensors."""

import os
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from ..media import load_audio, load_image, load_video, resample_audio, resize_frames
from ..media.files import PastEndError
from ..media.image import to_array
from .checks import is_number

logger = logging.get_logger(__name__)

_PATH = (str, os.PathLike)
_ARRAY = (torch.Tensor, np.ndarray)

# Silence and full scale of integer samples.
PCM_SCALES = {torch.uint8: (128, 128), torch.int16: (0, 2**15), torch.int32: (0, 2**31)}


def is_path(value: Any) -> bool:
    """Whether a value is the path of a file."""
    return isinstance(value, _PATH)


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, _ARRAY) and value.ndim in (2, 3))


def split_batch(name: str, value: Any) -> list | None:
    """
    Return the items of a batch, which may be `None`. A missing batch stays `None`.

    A list is a batch, except for a list of pictures, which are the frames of one video. An array with one dimension
    more than an item is a batch too, also as the waveform of `(waveform, rate)`.
    """
    if value is None:
        return None
    if isinstance(value, list) and not value:
        raise ValueError(f"`{name}` is an empty list.")
    name = name.removeprefix("negative_")
    if isinstance(value, list):
        if name == "video" and all(_is_picture(item) for item in value):
            return [value]
        return value
    item_dimensions = {"video": 4, "image": 3}
    if isinstance(value, _ARRAY) and name in item_dimensions and value.ndim == item_dimensions[name] + 1:
        return list(value)
    if name == "audio" and isinstance(value, tuple) and len(value) == 2:
        first, second = value
        if getattr(first, "ndim", 0) == 3:
            return [(waveform, second) for waveform in first]
        if getattr(second, "ndim", 0) == 3:
            return [(first, waveform) for waveform in second]
    return [value]


def _to_frames(name: str, value: Any) -> torch.Tensor:
    """Convert one video or picture to a tensor `[T, 3, H, W]`, uint8 or float in 0..1."""
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, list):
        pictures = [_to_frames(name, to_array(item) if isinstance(item, Image.Image) else item) for item in value]
        if len({picture.shape for picture in pictures}) != 1 or len({picture.dtype for picture in pictures}) != 1:
            raise ValueError(f"`{name}`: all frames must be of one kind and size.")
        return torch.cat(pictures)
    if isinstance(value, np.ndarray):
        value = _from_numpy(name, value)
        value = value.movedim(-1, -3) if value.ndim in (3, 4) else value
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"`{name}` must be a path, pictures, a numpy array or a tensor, got {type(value).__name__}.")
    frames = value[None, None] if value.ndim == 2 else value[None] if value.ndim == 3 else value
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or 0 in frames.shape:
        raise ValueError(
            f"`{name}` must have the shape [T, 3, H, W] as a tensor or [T, H, W, 3] as an array, or 1 channel instead"
            f" of 3 if it is grey; got {list(value.shape)} as a tensor."
        )
    if frames.dtype != torch.uint8:
        if not frames.is_floating_point():
            raise ValueError(f"`{name}` must be uint8 0..255 or floating point 0..1, got {frames.dtype}.")
        if not torch.isfinite(frames).all() or frames.min() < 0 or frames.max() > 1:
            raise ValueError(
                f"`{name}`: floating-point frames must lie in 0..1, got {frames.min():.3g}..{frames.max():.3g}."
            )
    return frames.expand(-1, 3, -1, -1)


def _from_numpy(name: str, value: np.ndarray) -> torch.Tensor:
    """Copy an array of any layout and byte order to a tensor."""
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise ValueError(f"`{name}`: an array of {value.dtype} is not supported.") from None


def _from_list(value: list) -> torch.Tensor:
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`audio`: the waveform is not a list of numbers ({error}).") from None


def read_video(
    video: Any,
    fps: float,
    num_frames: int,
    size: tuple[int, int],
    fit: str = "stretch",
    stride: int = 1,
    warn: bool = True,
    start: float | None = None,
) -> torch.Tensor:
    """
    Read the frames of a video in a window.

    Args:
        video: A path, from which frames are picked by time at `fps`, or frames at that rate.
        fps (`float`): Frames per second.
        num_frames (`int`): Frames of a window at `fps`.
        size (`tuple[int, int]`): Height and width to resize to.
        fit (`str`): How to resize, see [`~media.resize_frames`].
        stride (`int`): Keep every `stride`-th frame.
        warn (`bool`): Whether to warn if the video is black or longer than the window.
        start (`float`, *optional*): Start of the window in seconds, for one of many windows, which never warn.

    Returns:
        `torch.Tensor`: `[T, 3, *size]`, float32 in 0..1, with at most `num_frames / stride` frames. If the video ends
        before the window begins, its last frame.
    """
    num_frames, fps = num_frames // stride, fps / stride
    warn, start = warn and start is None, start or 0.0
    if not isinstance(video, _PATH):
        frames = _to_frames("video", video)
        frames = frames[min(round(start * fps * stride), len(frames) - 1) :: stride]
    else:
        try:
            # Read two more frames to find out whether the video is longer.
            frames = load_video(video, fps=fps, start=start, duration=(num_frames + 2) / fps, size=size, fit=fit)
        except PastEndError:
            frames = _last_frame(video, start, size, fit)
    if warn and frames.shape[0] > num_frames + 1:
        logger.warning(
            f"`video` is longer than the model's window; the first {num_frames} frames are used, {num_frames / fps:g} s"
            f" at {fps:g} frames a second."
        )
    frames = resize_frames(frames[:num_frames], size, fit)
    if warn:
        _warn_if_black("video", frames)
    return frames


def _last_frame(path: str | os.PathLike, beyond: float, size: tuple[int, int], fit: str) -> torch.Tensor:
    """Read the last frame, `[1, 3, *size]`, of a video that ends before `beyond` seconds."""
    back = 1.0
    while True:
        start = max(0.0, beyond - back)
        try:
            seconds = len(load_video(path, fps=1, start=start, duration=back + 1, size=(1, 1)))
        except PastEndError:
            if start == 0:
                raise
            back *= 2
        else:
            return load_video(path, fps=25, start=start + seconds - 1, duration=1.0, size=size, fit=fit)[-1:]


def read_image(image: Any, size: tuple[int, int], fit: str = "stretch", warn: bool = True) -> torch.Tensor:
    """Read a picture as `[1, 3, *size]`, float32 in 0..1."""
    frames = _to_frames("image", load_image(image) if isinstance(image, _PATH) else image)
    if frames.shape[0] != 1:
        raise ValueError(f"`image` must be one picture, got {frames.shape[0]}.")
    frames = resize_frames(frames, size, fit)
    if warn:
        _warn_if_black("image", frames)
    return frames


def _warn_if_black(name: str, frames: torch.Tensor) -> None:
    if not frames.any():
        logger.warning(f"`{name}` is black throughout, which AudioX treats as missing.")


def _check_finite(waveform: torch.Tensor, source: str) -> None:
    if not torch.isfinite(waveform).all():
        raise ValueError(f"`audio`: {source} holds NaN or infinite samples.")


def to_waveform(audio: Any, channels: int) -> tuple[torch.Tensor, int]:
    """
    Convert a sound in memory to a float32 tensor in -1..1.

    Args:
        audio: `(waveform, rate)` with `[N]`, `[1, N]` or `[channels, N]`, or in the order of scipy and Gradio
            `(rate, waveform)` with `[N]`, `[N, 1]` or `[N, channels]`. Samples are floating point, or integers that
            are scaled: int16, int32 and uint8.
        channels (`int`): Channels of the VAE.

    Returns:
        `tuple`: The waveform, `[1 or channels, N]`, and its rate in Hz.
    """
    if not isinstance(audio, tuple) or len(audio) != 2:
        raise ValueError(f"`audio` must be a path or `(waveform, rate)`, got {type(audio).__name__}.")
    rate_first = isinstance(audio[1], _ARRAY)
    rate, waveform = audio if rate_first else audio[::-1]
    if not is_number(rate) or rate != int(rate) or rate < 1:
        raise ValueError(f"`audio`: the rate must be a whole number of Hz above 0, got {rate!r}.")
    if isinstance(waveform, list):
        waveform = _from_list(waveform)
    if isinstance(waveform, np.ndarray):
        waveform = _from_numpy("audio", waveform)
    if not isinstance(waveform, torch.Tensor):
        raise ValueError(f"`audio`: the waveform must be a tensor or an array, got {type(waveform).__name__}.")
    if waveform.dtype in PCM_SCALES:
        zero, scale = PCM_SCALES[waveform.dtype]
        waveform = (waveform.double() - zero) / scale
    if not waveform.is_floating_point():
        raise ValueError(
            f"`audio`: the waveform must be floating point in -1..1, or int16, int32 or uint8, got {waveform.dtype}."
        )
    given = list(waveform.shape)
    if waveform.ndim == 1:
        waveform = waveform[None]
    elif waveform.ndim == 2 and rate_first:
        waveform = waveform.mT
    if 0 in given:
        raise ValueError(f"`audio`: the waveform is empty, its shape is {given}.")
    if waveform.ndim != 2 or waveform.shape[0] not in (1, channels):
        several = "" if channels == 1 else f", [{channels}, N]"
        raise ValueError(
            f"`audio`: the waveform must have the shape [N], [1, N]{several}, or [N, channels] after the rate as"
            f" `(rate, waveform)`; got {given}."
        )
    waveform = waveform.float().contiguous()
    _check_finite(waveform, "the waveform")
    return waveform, int(rate)


def read_waveform(audio: Any, sampling_rate: int, channels: int, num_samples: int | None = None) -> torch.Tensor:
    """
    Read a sound.

    Args:
        audio: A path, or a sound in memory, see [`to_waveform`].
        sampling_rate, channels (`int`): Rate and channels of the VAE.
        num_samples (`int`, *optional*): Samples that are needed. A second more is read from a file.

    Returns:
        `torch.Tensor`: float32 `[channels, N]` at `sampling_rate`.
    """
    if isinstance(audio, _PATH):
        duration = None if num_samples is None else num_samples / sampling_rate + 1
        waveform, _ = load_audio(audio, sampling_rate=sampling_rate, channels=channels, duration=duration)
        _check_finite(waveform, str(audio))
    else:
        waveform, rate = to_waveform(audio, channels)
        waveform = resample_audio(waveform, rate, sampling_rate).expand(channels, -1)

    if not waveform.any():
        logger.warning("`audio` is silent throughout, which AudioX treats as missing.")
    if waveform.abs().max() > 1:
        logger.warning(f"`audio` peaks at {waveform.abs().max():.2f}, beyond full scale; it is used as it is.")
    return waveform


def read_audio(
    audio: Any,
    sampling_rate: int,
    channels: int,
    num_samples: int,
    padding_side: str = "right",
    whole: str = "the model's window",
) -> torch.Tensor:
    """
    Read an audio prompt, cut or padded with silence to `num_samples`.

    Args:
        audio, sampling_rate, channels: See [`read_waveform`].
        num_samples (`int`): Length of the result.
        padding_side (`str`): Where a short sound is padded, `"right"` or `"left"`.
        whole (`str`): Name of that length for the warning.

    Returns:
        `torch.Tensor`: float32 `[channels, num_samples]` at `sampling_rate`.
    """
    waveform = read_waveform(audio, sampling_rate, channels, num_samples)
    # A longer file is read a second beyond what is used.
    if waveform.shape[1] > num_samples + sampling_rate // 2:
        logger.warning(f"`audio` is longer than {whole}; the first {num_samples / sampling_rate:g} s are used.")
    waveform = waveform[:, :num_samples]
    missing = num_samples - waveform.shape[1]
    return torch.nn.functional.pad(waveform, (missing, 0) if padding_side == "left" else (0, missing))
