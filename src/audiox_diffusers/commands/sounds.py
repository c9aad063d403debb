"""What `audiox generate` does for one file and for each line of a batch: check, make, write."""

import math
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from ..media import load_audio, load_image, load_video, save_audio, save_video
from ..media.files import check_positive
from ..media.write import AUDIO_FORMATS, VIDEO_FORMATS
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
        device, dtype = read_placement(args)
        return cls(
            steps=args.steps,
            guidance=args.guidance,
            guidance_rescale=args.guidance_rescale,
            audio_padding=args.audio_padding,
            normalize=args.normalize,
            device=device,
            dtype=dtype,
        )


def make(pipe: AudioXPipeline, request: Request, settings: Settings) -> tuple[np.ndarray, float]:
    """
    A sound `[channels, samples]`, and the seconds that took. Its seed is used on the CPU, so that it starts from the
    same noise on all devices.
    """
    window = pipe.window_samples / pipe.vae.config.sampling_rate
    if request.length is not None and request.length > window:
        raise ValueError(f"length must be at most {window:.4g} s, the model's window, got {request.length:g}")
    options = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "guidance_rescale": settings.guidance_rescale,
    }
    start = time.perf_counter()
    (sound,) = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        video=request.video,
        image=request.image,
        audio=request.audio,
        audio_length_in_s=_length(request, window),
        generator=[torch.Generator().manual_seed(request.seed)],
        audio_padding_side=settings.audio_padding,
        **{name: value for name, value in options.items() if value is not None},
    ).audios
    return sound, time.perf_counter() - start


def _length(request: Request, window: float) -> float | None:
    """The length asked for; without one that of the video where its picture is kept, and it is short."""
    if request.length is None and request.output.suffix.lower() in VIDEO_FORMATS:
        return min(10.0, window, _file_seconds(request.video))
    return request.length


def write(path: Path, waveform: np.ndarray, rate: int, video: Path | None, normalize: bool) -> str:
    """Write one sound, with the picture of `video` if the extension asks for it; what was written, in a line."""
    peak = float(np.abs(waveform).max())
    level = f"peak {peak:.2f}"
    if normalize and peak > 0:
        waveform = waveform / peak
        level += ", scaled to 1.00"
    channels, samples = waveform.shape
    kind = CHANNELS.get(channels, f"{channels}-channel")
    line = f"wrote {path}: {samples / rate:.2f} s of {kind} sound at {rate} Hz, {level}"
    if path.suffix.lower() not in VIDEO_FORMATS:
        save_audio(path, waveform, rate)
        return line

    save_video(path, video, waveform, rate)
    seconds = _file_seconds(path)
    # An AAC frame of 1024 samples may be padded.
    if seconds > (samples + 1024) / rate:
        line += f"; the video goes on without sound until {seconds:.2f} s"
    return line


def _file_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return container.duration / av.time_base
