"""Windows of records: what a model sees of them, and where they lie."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch

from ...pipelines import AudioXPipeline

# Crops to draw until one is not silent.
CROPS = 16


@dataclass(frozen=True)
class WindowSpec:
    """
    The part of a record that a model sees.

    Attributes:
        sampling_rate, channels: Format of the waveform; the rate in Hz.
        hop_length: Samples of a latent frame.
        context_frames: Latent frames on each side whose sound a latent frame depends on.
        window_samples: Samples of a window of latents.
        prompt_samples: Samples of an audio prompt.
        video_fps, num_frames, frame_size: Frames for the image encoder; the size in pixels.
        sync_fps, num_sync_frames, sync_size: Frames for Synchformer; 0 for models without it.
        sync_segment, sync_stride: Frames of a segment of Synchformer, and from one segment to the next.
    """

    sampling_rate: int
    channels: int
    hop_length: int
    context_frames: int
    window_samples: int
    prompt_samples: int
    video_fps: float
    num_frames: int
    frame_size: int
    sync_fps: float = 0.0
    num_sync_frames: int = 0
    sync_size: int = 0
    sync_segment: int = 0
    sync_stride: int = 0

    @classmethod
    def of(cls, pipe: AudioXPipeline) -> "WindowSpec":
        """Return the window of a pipeline's models."""
        vae, conditioner, sync = pipe.vae.config, pipe.conditioner.config, {}
        if pipe.sync_encoder is not None:
            config = pipe.sync_encoder.config
            sync = {
                "sync_fps": config.video_fps,
                "num_sync_frames": pipe.num_sync_frames,
                "sync_size": config.image_size,
                "sync_segment": config.num_frames,
                "sync_stride": config.segment_stride,
            }
        return cls(
            sampling_rate=vae.sampling_rate,
            channels=vae.audio_channels,
            hop_length=pipe.vae.hop_length,
            context_frames=math.ceil(pipe.vae.tile_sample_overlap / pipe.vae.hop_length),
            window_samples=pipe.window_samples,
            prompt_samples=conditioner.audio_prompt_samples,
            video_fps=conditioner.video_fps,
            num_frames=conditioner.num_video_frames,
            frame_size=pipe.image_encoder.config.image_size,
            **sync,
        )

    @property
    def num_samples(self) -> int:
        """Samples to encode. They cover a window of latents and an audio prompt."""
        return max(self.window_samples, self.prompt_samples)

    @property
    def num_latents(self) -> int:
        """Latent frames of `num_samples`."""
        return self.num_samples // self.hop_length

    @property
    def seconds(self) -> float:
        """Duration of a window of latents."""
        return self.window_samples / self.sampling_rate

    @property
    def num_sync_segments(self) -> int:
        """Segments of Synchformer in a window."""
        return 1 + (self.num_sync_frames - self.sync_segment) // self.sync_stride if self.sync_stride else 0

    @cached_property
    def picture_period(self) -> Fraction:
        """
        Seconds between the positions of windows with a video.

        At each of them begin a frame for the image encoder and a segment of Synchformer, so that all windows of a
        record share their embeddings.
        """
        period = 1 / Fraction(str(self.video_fps))
        if not self.sync_stride:
            return period
        other = self.sync_stride / Fraction(str(self.sync_fps))
        return Fraction(math.lcm(period.numerator, other.numerator), math.gcd(period.denominator, other.denominator))

    @property
    def period_frames(self) -> int:
        """Frames for the image encoder in a `picture_period`."""
        return int(self.picture_period * Fraction(str(self.video_fps)))

    @property
    def period_segments(self) -> int:
        """Segments of Synchformer in a `picture_period`; 0 for models without it."""
        return int(self.picture_period * Fraction(str(self.sync_fps)) / self.sync_stride) if self.sync_stride else 0

    def last_frame(self, seconds: float) -> int:
        """Return the last latent frame of a record of this duration at which a window can start."""
        return max(0, round(seconds * self.sampling_rate) - self.window_samples) // self.hop_length

    def last_picture(self, seconds: float) -> int:
        """Return the number of the last position at which a window with a video can start."""
        spare = max(0, round(seconds * self.sampling_rate) - self.window_samples)
        return int(spare / (self.picture_period * self.sampling_rate))

    def encoded_samples(self, seconds: float) -> int:
        """Return the samples of a record to encode: those that lie in any window, padded with silence if need be."""
        return self.last_frame(seconds) * self.hop_length + self.num_samples


class Crop(NamedTuple):
    """
    Position of a window in a record.

    Attributes:
        frame: Its first latent frame.
        picture: Number of its position among those of windows with a video, within half a latent frame of `frame`. 0
            for records without a video.
    """

    frame: int
    picture: int


def draw_crops(
    spec: WindowSpec, seconds: float, video: bool, random: bool, generator: torch.Generator
) -> Iterator[Crop]:
    """
    Draw positions of the window in a record, the next one if the one before is silent.

    Args:
        spec: Window of the model.
        seconds: Duration of the record.
        video: Whether the record has a video.
        random: Whether the window may lie anywhere, else it lies at the start.
        generator: Generator on the CPU.
    """
    last = spec.last_picture(seconds) if video else spec.last_frame(seconds)
    if not random or last == 0:
        yield Crop(0, 0)
        return
    for _ in range(CROPS):
        position = int((last + 1) * torch.rand((), generator=generator, dtype=torch.float64).item())
        if video:
            frame = round(position * spec.picture_period * spec.sampling_rate / spec.hop_length)
            yield Crop(min(frame, spec.last_frame(seconds)), position)
        else:
            yield Crop(position, 0)
