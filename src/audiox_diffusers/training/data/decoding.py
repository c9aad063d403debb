"""Windows of media files as tensors."""

from dataclasses import dataclass
from math import floor

import torch

from ...media import FrameSpec, load_audio, load_frames, load_image, resize_frames
from ...media.files import PastEndError
from .bad_records import BadRecord
from .cells import Media
from .windows import WindowSpec

# Peaks below -60 dB of full scale count as silence.
SILENCE = 1e-3
# Seconds around a piece of sound that resampling reads.
MARGIN = 0.1
# Seconds to add, so that a start between two samples is rounded in the same direction in every second of a file.
TIE = 1e-7


class VideoEnded(BadRecord):
    """The window begins after the last frame of its video."""

    def __init__(self) -> None:
        super().__init__("its video ends before the window")


@dataclass
class Pictures:
    """
    Decoded frames of a video, or a still image as one frame.

    Attributes:
        frames: For the image encoder, uint8 `[T, 3, S, S]`.
        sync_frames: For Synchformer, uint8 `[T, 3, S, S]`; `None` for models without it.
    """

    frames: torch.Tensor
    sync_frames: torch.Tensor | None


@dataclass(frozen=True)
class RecordSound:
    """
    The sound of a record at the rate of the model.

    The samples of a piece do not depend on where the piece begins and ends, up to rounding.

    Args:
        source: Sound or video file.
        start, seconds: Part of the file that is the record.
        rate, channels: Format of the samples.
    """

    source: Media
    start: float
    seconds: float
    rate: int
    channels: int

    def read(self, first: int, stop: int) -> torch.Tensor:
        """
        Return samples `first` to `stop` of the record, `[channels, stop - first]`. Outside of the record is silence.

        Raises:
            BadRecord: A sample is not finite.
        """
        samples = torch.zeros(self.channels, stop - first)
        begin, end = max(0, first), min(stop, round(self.seconds * self.rate))
        if begin >= end:
            return samples
        # A whole number of seconds is a whole number of samples at both rates.
        second = max(0, floor(begin / self.rate - MARGIN))
        seconds = min(self.seconds, end / self.rate + MARGIN) - second
        try:
            found, _ = load_audio(
                self.source, self.rate, self.channels, start=self.start + second + TIE, duration=seconds
            )
        except PastEndError:
            # The file is shorter than it declares.
            if second == 0:
                raise
            return samples
        if not torch.isfinite(found).all():
            raise BadRecord("holds NaN or infinite samples")
        found = found[:, begin - second * self.rate : end - second * self.rate]
        samples[:, begin - first : begin - first + found.shape[1]] = found
        return samples


def is_silent(peak: torch.Tensor) -> bool:
    """Tell whether a window with samples up to `peak` counts as silent."""
    return peak.item() < SILENCE


def decode_prompt(source: Media, spec: WindowSpec) -> torch.Tensor:
    """Return an audio prompt, `[channels, prompt_samples]`, cut or padded with silence at the end."""
    sound = RecordSound(source, 0.0, spec.prompt_samples / spec.sampling_rate, spec.sampling_rate, spec.channels)
    return sound.read(0, spec.prompt_samples)


def decode_video(source: Media, spec: WindowSpec, start: float, num_frames: int, num_sync_frames: int) -> Pictures:
    """
    Decode frames of a video. There are fewer if it ends earlier.

    Args:
        source: Video file.
        spec: Window of the model.
        start: Time of the first frame, in seconds.
        num_frames: Frames for the image encoder.
        num_sync_frames: Frames for Synchformer; ignored for models without it.

    Raises:
        VideoEnded: It has no frames at `start` or later.
    """
    wanted = [FrameSpec(spec.video_fps, num_frames, (spec.frame_size,) * 2)]
    if spec.sync_stride:
        wanted.append(FrameSpec(spec.sync_fps, num_sync_frames, (spec.sync_size,) * 2, "crop"))
    try:
        frames, *sync_frames = load_frames(source, wanted, start)
    except PastEndError:
        raise VideoEnded from None
    return Pictures(frames, *(sync_frames or [None]))


def check_not_black(lit: torch.Tensor) -> None:
    """Raise `BadRecord` if no frame of a window is lit, of `lit`, `[T]`."""
    if not lit.any():
        raise BadRecord("its video is black throughout")


def decode_image(source: Media, spec: WindowSpec) -> Pictures:
    """Decode an image."""
    picture = load_image(source)[None]
    frames = _as_bytes(resize_frames(picture, (spec.frame_size,) * 2))
    sync_frames = None
    if spec.sync_stride:
        sync_frames = _as_bytes(resize_frames(picture, (spec.sync_size,) * 2, "crop"))
    return Pictures(frames, sync_frames)


def _as_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Convert frames from 0..1 to uint8, which takes a quarter of the memory between processes."""
    return (frames * 255).round().to(torch.uint8)
