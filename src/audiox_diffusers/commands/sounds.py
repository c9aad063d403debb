"""What `audiox generate` and `audiox edit` do for one file and for each line of a batch: check, make, write."""

import math
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from ..media import load_audio, load_image, load_video, save_audio, save_video
from ..media.files import check_positive
from ..media.formats import AUDIO_FORMATS, VIDEO_FORMATS
from ..pipelines import AudioXPipeline, load_features
from ..pipelines.features import is_features
from .loading import read_placement

CHANNELS = {1: "mono", 2: "stereo"}


@dataclass
class Request:
    """What to make and where to write it; `check` raises `ValueError` where that cannot be."""

    output: Path
    seed: int
    prompt: str | None = None
    negative_prompt: str | None = None
    video: Path | None = None
    image: Path | None = None
    audio: Path | None = None
    length: float | None = None

    def check(self) -> None:
        """`ValueError` if the output cannot be written as asked, or nothing is given to make a sound of."""
        suffix = self.output.suffix.lower()
        if suffix not in AUDIO_FORMATS and suffix not in VIDEO_FORMATS:
            known = ", ".join([*AUDIO_FORMATS, *VIDEO_FORMATS])
            raise ValueError(f"output {self.output}: unknown extension {suffix!r}, use one of {known}")
        if suffix in VIDEO_FORMATS and self.video is None:
            raise ValueError(f"output {self.output}: a video file needs a video to take the picture from")
        if suffix in VIDEO_FORMATS and is_features(self.video):
            raise ValueError(f"output {self.output}: {self.video} holds no picture")
        if all(given is None for given in (self.prompt, self.video, self.image, self.audio)):
            raise ValueError("nothing to go by: give at least one of prompt, video, image and audio")
        if self.video is not None and self.image is not None:
            raise ValueError("give either video or image, not both")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2**64 - 1, got {self.seed}")
        if self.length is not None:
            check_positive("length", self.length)

    def check_files(self) -> None:
        """
        Decode the first moment of each input, or read its features, and copy a picture to be kept, without sound: a
        file that is no good must not come out after minutes of sampling.
        """
        if is_features(self.video):
            load_features(self.video, "video_embeds")
        elif self.video is not None:
            load_video(self.video, duration=0.1)
            if self.output.suffix.lower() in VIDEO_FORMATS:
                with tempfile.TemporaryDirectory(prefix=".", dir=self.output.parent) as folder:
                    save_video(Path(folder) / self.output.name, self.video)
        if self.image is not None:
            load_image(self.image)
        if self.audio is not None:
            load_audio(self.audio, duration=0.1)


@dataclass
class Settings:
    """How to make sounds."""

    steps: int | None
    guidance: float | None
    guidance_rescale: float | None
    audio_padding: str
    window_overlap: float | None
    window_batch: int
    normalize: bool
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def from_args(cls, args: Namespace) -> "Settings":
        """The options of the command line; `ValueError` names the one that is out of range."""
        if args.steps is not None and args.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {args.steps}")
        if args.guidance is not None and not math.isfinite(args.guidance):
            raise ValueError(f"--guidance must be a finite number, got {args.guidance}")
        if args.guidance_rescale is not None and not 0 <= args.guidance_rescale <= 1:
            raise ValueError(f"--guidance-rescale must be in 0..1, got {args.guidance_rescale}")
        if args.window_overlap is not None:
            check_positive("--window-overlap", args.window_overlap)
        if args.window_batch < 1:
            raise ValueError(f"--window-batch must be at least 1, got {args.window_batch}")
        device, dtype = read_placement(args)
        return cls(
            steps=args.steps,
            guidance=args.guidance,
            guidance_rescale=args.guidance_rescale,
            audio_padding=args.audio_padding,
            window_overlap=args.window_overlap,
            window_batch=args.window_batch,
            normalize=args.normalize,
            device=device,
            dtype=dtype,
        )

    def options(self) -> dict[str, Any]:
        """The arguments of a pipeline that are the same for all sounds."""
        options = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "guidance_rescale": self.guidance_rescale,
            "window_overlap_in_s": self.window_overlap,
            "window_batch_size": self.window_batch,
        }
        return {name: value for name, value in options.items() if value is not None}


def make(pipe: AudioXPipeline, request: Request, settings: Settings) -> tuple[str, float]:
    """Make a sound and write it; what was written, in a line, and the seconds that took."""
    start = time.perf_counter()
    length = length_in_s(pipe, request)
    line = finish(pipe, request, sample(pipe, [request], length, settings), length, settings)
    return line, time.perf_counter() - start


def length_in_s(pipe: AudioXPipeline, request: Request) -> float:
    """
    The seconds asked for; without them those of the video where its picture is kept and it is short, or the
    pipeline's own.
    """
    if request.length is not None:
        return request.length
    if request.output.suffix.lower() in VIDEO_FORMATS:
        return min(10.0, pipe.window_samples / pipe.vae.config.sampling_rate, _file_seconds(request.video))
    return pipe.default_length_in_s(request.prompt)


def sample(pipe: AudioXPipeline, requests: list[Request], length: float, settings: Settings) -> torch.Tensor:
    """
    The latents `[B, C, L]` of sounds that are all as long, `length` in seconds, and all with a negative prompt or all
    without. Seeds are used on the CPU, so that a sound starts from the same noise on all devices and in any batch.
    """
    negative_prompts = [request.negative_prompt for request in requests]
    return pipe(
        prompt=[request.prompt for request in requests],
        negative_prompt=None if negative_prompts[0] is None else negative_prompts,
        video=[request.video for request in requests],
        image=[request.image for request in requests],
        audio=[request.audio for request in requests],
        audio_length_in_s=length,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        audio_padding_side=settings.audio_padding,
        output_type="latent",
        **settings.options(),
    ).audios


def finish(pipe: AudioXPipeline, request: Request, latents: torch.Tensor, length: float, settings: Settings) -> str:
    """Decode the latents `[1, C, L]` of a sound of `length` seconds and write it; what was written, in a line."""
    rate = pipe.vae.config.sampling_rate

    def decode() -> Iterator[np.ndarray]:
        return (piece[0] for piece in pipe.stream_latents(latents, round(length * rate)))

    peak = max(float(np.abs(piece).max()) for piece in decode()) if settings.normalize else 1.0
    return write(request.output, decode(), rate, request.video, peak or 1.0)


@dataclass
class _Measured:
    """An iterator over the pieces of a sound, divided by `level`, that knows what has passed through it."""

    pieces: Iterator[np.ndarray]
    level: float
    channels: int = 0
    samples: int = 0
    peak: float = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self.pieces:
            self.channels, samples = piece.shape
            self.samples += samples
            self.peak = max(self.peak, float(np.abs(piece).max()))
            yield piece / self.level


def write(path: Path, pieces: Iterator[np.ndarray], rate: int, video: Path | None, level: float = 1.0) -> str:
    """
    Write one sound as its pieces come, divided by `level`, with the picture of `video` if the extension asks for it;
    what was written, in a line.
    """
    sound = _Measured(pieces, level)
    with_picture = path.suffix.lower() in VIDEO_FORMATS
    if with_picture:
        save_video(path, video, sound, rate)
    else:
        save_audio(path, sound, rate)

    kind = CHANNELS.get(sound.channels, f"{sound.channels}-channel")
    line = f"wrote {path}: {sound.samples / rate:.2f} s of {kind} sound at {rate} Hz, peak {sound.peak:.2f}"
    if level != 1:
        line += ", scaled to 1.00"
    if with_picture:
        seconds = _file_seconds(path)
        # An AAC frame of 1024 samples may be padded.
        if seconds > (sound.samples + 1024) / rate:
            line += f"; the video goes on without sound until {seconds:.2f} s"
    return line


def _file_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return container.duration / av.time_base
