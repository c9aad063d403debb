"""Writing of sound and video files."""

import heapq
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import OutputContainer

from ..atomic import check_target, replacing
from .containers import open_media
from .files import MediaError, check_positive, check_sampling_rate
from .formats import AUDIO_FORMATS, VIDEO_FORMATS
from .image import frame_rate, open_image
from .recipe import Recipe, write_recipe
from .resample import LAYOUTS
from .tracks import BIT_RATES, add_copied_picture, add_encoded_picture, add_sound, does_not_fit
from .video import is_picture, load_video

logger = logging.getLogger(__name__)

Waveform = torch.Tensor | np.ndarray

# Most frames per second that are written.
MAX_FPS = 1000
MOST_CHANNELS = {"libmp3lame": 2, "libopus": 2}


def save_audio(
    path: str | os.PathLike,
    waveform: Waveform | Iterable[Waveform],
    sampling_rate: int,
    bit_rate: int | None = None,
    recipe: Recipe | None = None,
) -> None:
    """
    Write sound to a file. The extension chooses the format.

    `.wav` and `.flac` hold 16-bit samples. `.mp3`, `.ogg` and `.opus` (both Opus), and `.m4a` (AAC) are lossy; they
    resample sound whose rate the codec does not know. `.mp3`, `.ogg` and `.opus` hold 1 or 2 channels. The file
    appears only when it is complete; on any error, an existing file stays as it was.

    Args:
        path (`str` or `os.PathLike`): File to write. An existing file is replaced.
        waveform (`torch.Tensor` or `np.ndarray`): Floating point, shape `[samples]` or `[channels, samples]` with 1 to
            8 channels, in -1..1. Values outside are clipped, with a warning. An iterable of such pieces is written
            piece by piece.
        sampling_rate (`int`): Sampling rate in Hz.
        bit_rate (`int`, *optional*): Bits per second of a lossy format; defaults to 192000 for MP3 and AAC, 128000 for
            Opus. Encoders take the nearest rate they know.
        recipe ([`Recipe`], *optional*): How the sound was generated, for the metadata of the file.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: The folder is missing, not a folder, or not writable.
        IsADirectoryError, FileExistsError: `path` is a folder, a device or a pipe.
        ValueError: The extension is unknown, `waveform` is empty, has another shape or type, or holds NaN or infinity,
            the format cannot hold that many channels, `sampling_rate` is out of range, or `bit_rate` is not above 0 or
            given for a lossless format.
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
    with replacing(path) as temporary, _create(temporary, muxer, recipe) as target:
        for packet in add_sound(target, codec, channels, pieces, rate, bit_rate):
            target.mux(packet)


def save_video(
    path: str | os.PathLike,
    video: str | os.PathLike | torch.Tensor | np.ndarray,
    waveform: Waveform | Iterable[Waveform] | None = None,
    sampling_rate: int = 44100,
    fps: float | None = None,
    recipe: Recipe | None = None,
) -> None:
    """
    Write a video with new sound.

    The picture of a video file is copied packet by packet, with its rotation and its place on the file's timeline: a
    picture that starts late in `video` starts as late in the new file. Other streams, such as the old sound, are
    dropped. Frames, pictures and animations are encoded as H.264 (yuv420p, BT.709); an odd height or width grows by
    one repeated row or column. The sound is encoded as AAC. Neither picture nor sound is cut to the other's duration.
    The file appears only when it is complete; on any error, an existing file stays as it was.

    Args:
        path (`str` or `os.PathLike`): `.mp4`, `.mov` or `.mkv` file to write. An existing file is replaced; it may be
            `video` itself.
        video (`str`, `os.PathLike`, `torch.Tensor` or `np.ndarray`): Video file, or RGB frames: a tensor
            `[frames, 3, height, width]` or an array `[frames, height, width, 3]`, uint8 or floating point in 0..1.
        waveform (`torch.Tensor` or `np.ndarray`, *optional*): Sound that starts with the timeline of `video`, as
            [`load_audio`] reads it. Floating point, shape `[samples]` or `[channels, samples]` with 1 to 8 channels,
            in -1..1; values outside are clipped, with a warning. Also an iterable of such pieces. `None` writes no
            sound.
        sampling_rate (`int`): Sampling rate of `waveform` in Hz.
        fps (`float`, *optional*): Frames per second. Required for frames, not allowed for a file.
        recipe ([`Recipe`], *optional*): How the sound was generated, for the metadata of the file.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError, FileExistsError: As [`save_audio`];
            for a `video` file as [`load_video`].
        MediaError: `video` cannot be read or has no picture, or the container of `path` cannot hold its picture.
        ValueError: The extension is unknown, `fps` is missing for frames or given for a file, or `video`, `waveform`,
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
    if copied and is_picture(video):
        with open_image(video) as image:
            fps = frame_rate(image, video)
        video, copied = load_video(video, fps=fps, duration=None), False
    if not copied:
        frames, fps = _frames(video), _frame_rate(fps)

    with ExitStack() as stack:
        source = stack.enter_context(open_media(video)) if copied else None
        target = stack.enter_context(_create(stack.enter_context(replacing(path)), muxer, recipe))
        if copied:
            tracks = [add_copied_picture(target, source, video, path.suffix.lower())]
        else:
            tracks = [add_encoded_picture(target, frames, fps)]
        if waveform is not None:
            tracks.append(add_sound(target, "aac", channels, pieces, rate))
        if copied:
            try:
                target.start_encoding()
            except av.FFmpegError as error:
                raise does_not_fit(video, path.suffix.lower()) from error
        for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            try:
                target.mux(packet)
            except av.ArgumentError as error:
                if not copied:
                    raise
                raise MediaError(f"{video}: the file is damaged, its picture cannot be copied") from error


@contextmanager
def _create(path: Path, muxer: str, recipe: Recipe | None) -> Iterator[OutputContainer]:
    """Open a new file for writing. FFmpeg gets the open file: it would take a name with a colon for a URL."""
    try:
        with open(path, "wb") as file, av.open(file, "w", format=muxer) as target:
            if recipe is not None and not write_recipe(target, recipe):
                logger.warning("The recipe of the sound is too long for its metadata and was left out.")
            yield target
    except Exception as error:
        # After a failed write, closing fails too, with an error that says less.
        cause = error
        while isinstance(cause, av.error.PyAVCallbackError):
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None or cause.filename is not None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from cause


def _format(path: Path, formats: dict) -> tuple[str, str] | str:
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise ValueError(f"{path}: unknown extension {path.suffix!r}, use one of {', '.join(formats)}")
    return formats[suffix]


def _array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """Convert to a numpy array, floating point of any precision to float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return values.astype(np.float32, copy=False) if np.issubdtype(values.dtype, np.floating) else values


def _pieces(waveform: Waveform | Iterable[Waveform]) -> tuple[int, Iterator[np.ndarray]]:
    """Return the number of channels and the checked, clipped pieces. The first piece is checked at once."""
    if not isinstance(waveform, Waveform | Iterable) or isinstance(waveform, str | bytes):
        raise ValueError(f"`waveform` must be a tensor, an array or an iterable of them, got {waveform!r}")
    pieces = _clipped([waveform] if isinstance(waveform, Waveform) else waveform)
    first = next(pieces, None)
    if first is None:
        raise ValueError("`waveform` is empty")
    return len(first), itertools.chain([first], pieces)


def _clipped(pieces: Iterable[Waveform]) -> Iterator[np.ndarray]:
    """Yield float32 `[channels, samples]` in -1..1, and warn at the end if that changed anything."""
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
        logger.warning(f"{beyond} of {size} samples are outside -1..1 (peak {peak:.3f}) and were clipped.")


def _samples(waveform: Waveform) -> np.ndarray:
    """Return checked float32 `[channels, samples]`."""
    if not isinstance(waveform, Waveform):
        raise ValueError(f"`waveform` must be a tensor or an array, got {type(waveform).__name__}")
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


def _frames(video: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return checked uint8 RGB `[frames, height, width, 3]`."""
    if not isinstance(video, torch.Tensor | np.ndarray):
        raise ValueError(f"`video` must be a path, a tensor or an array, got {type(video).__name__}")
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
        raise ValueError("`fps` is required for frames")
    check_positive("fps", fps)
    rate = Fraction(str(float(fps))).limit_denominator(1001)
    if rate == 0 or rate > MAX_FPS:
        raise ValueError(f"`fps` must be at least 1/1001 and at most {MAX_FPS}, got {fps!r}")
    return rate
