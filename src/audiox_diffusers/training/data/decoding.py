"""Windows of media files as tensors."""

from dataclasses import dataclass
from math import ceil, floor

import torch

from ...media import FrameSpec, load_audio, load_frames, load_image, resample_audio, resize_frames
from ...media.containers import open_media, sound_stream
from ...media.files import PastEndError
from .bad_records import BadRecord
from .cells import Media
from .windows import WindowSpec

# Peaks below -60 dB of full scale count as silence.
SILENCE = 1e-3
# Seconds around a piece of sound that resampling reads.
MARGIN = 0.1
# Seconds of AAC sound to decode at once, see `RecordSound`.
BLOCK_SECONDS = 5
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

    The samples of a piece do not depend on where the piece begins and ends, up to rounding. Decoders of AAC replace noise
    by random numbers, which depend on where decoding begins. So long records in AAC are decoded in blocks.

    Args:
        source: Sound or video file.
        start, seconds: Part of the file that is the record.
        rate, channels: Format of the samples.
        in_blocks: Whether to decode in blocks.
    """

    source: Media
    start: float
    seconds: float
    rate: int
    channels: int
    in_blocks: bool = False

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
        found = self._blocks(second, seconds) if self.in_blocks else self._load(second, seconds, self.rate)[0]
        if not torch.isfinite(found).all():
            raise BadRecord("holds NaN or infinite samples")
        found = found[:, begin - second * self.rate : end - second * self.rate]
        samples[:, begin - first : begin - first + found.shape[1]] = found
        return samples

    def _load(self, second: int, seconds: float, rate: int | None) -> tuple[torch.Tensor, int]:
        try:
            return load_audio(self.source, rate, self.channels, start=self.start + second + TIE, duration=seconds)
        except PastEndError:
            # The file is shorter than it declares.
            if second == 0:
                raise
            return torch.zeros(self.channels, 0), self.rate

    def _blocks(self, second: int, seconds: float) -> torch.Tensor:
        """Decode the blocks of a record that `seconds` from `second` on touch, and cut these seconds out."""
        begin = second // BLOCK_SECONDS * BLOCK_SECONDS
        decoded, rate = torch.zeros(self.channels, 0), self.rate
        for block in range(begin, ceil(second + seconds), BLOCK_SECONDS):
            found, found_rate = self._load(block, min(BLOCK_SECONDS, self.seconds - block), None)
            if not found.shape[1]:
                break
            decoded, rate = torch.cat((decoded, found), dim=1), found_rate
        cut = decoded[:, (second - begin) * rate :][:, : round(seconds * rate)]
        return resample_audio(cut, rate, self.rate) if cut.shape[1] else cut


def decodes_in_blocks(source: Media) -> bool:
    """Tell whether the sound of a file is AAC that is decoded from the middle."""
    with open_media(source) as container:
        codec = sound_stream(container, source).codec_context.name
        return codec == "aac" and container.format.name.startswith("mov")


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
