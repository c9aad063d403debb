"""Generate and write sounds, for one request or for each line of a batch."""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..atomic import scratch
from ..media import Recipe, media_duration, save_audio, save_video
from ..media.recipe import input_name, model_name
from ..pipelines import AudioXInpaintPipeline, AudioXPipeline
from ..pipelines.requests import check_request_files
from .guidance import Guidance
from .loading import Placement, dtype_name, read_placement
from .request import Request

CHANNELS = {1: "mono", 2: "stereo"}


@dataclass
class Settings:
    """Options that all sounds of a command share."""

    steps: int | None
    guidance: Guidance
    audio_padding: str
    window_overlap: float | None
    window_batch: int
    normalize: bool
    placement: Placement
    model: str
    metadata: bool = True
    lora: tuple[tuple[str, float], ...] = ()

    @classmethod
    def from_args(cls, args: Namespace) -> "Settings":
        """Return the settings of a command line; `ValueError` if there is no such device."""
        names = cls.__dataclass_fields__.keys() - {"guidance", "placement", "lora"}
        values = {name: getattr(args, name) for name in names}
        return cls(guidance=Guidance.from_args(args), placement=read_placement(args), **values)

    def options(self, pipe: AudioXPipeline, requests: list[Request]) -> dict[str, Any]:
        """Return the pipeline's arguments for some requests."""
        options = {
            "num_inference_steps": self.steps,
            "window_overlap_in_s": self.window_overlap,
            "window_batch_size": self.window_batch,
            **self.guidance.arguments(requests, pipe.config.default_guidance_scale),
        }
        return {name: value for name, value in options.items() if value is not None}

    def recipe(
        self, pipe: AudioXPipeline, request: Request, length: float | None = None, edit: dict[str, Any] | None = None
    ) -> Recipe | None:
        """Return the recipe of a sound, with the model's own defaults filled in; `None` without metadata."""
        if not self.metadata:
            return None
        config, edit = pipe.config, edit or {}
        return Recipe(
            model=model_name(self.model),
            seed=request.seed,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            **{name: input_name(path) for name, path in request.inputs.items()},
            length=length,
            inpaint=tuple(edit.get("inpaint_spans", ())),
            extend=edit.get("extend_by_s"),
            strength=edit.get("strength"),
            crossfade=edit.get("crossfade_ms"),
            steps=config.default_num_inference_steps if self.steps is None else self.steps,
            **self.guidance.recipe(request, config.default_guidance_scale),
            audio_padding=self.audio_padding if request.audio is not None and not edit else None,
            window_overlap=self.window_overlap,
            window_batch=self.window_batch,
            normalize=self.normalize,
            dtype=dtype_name(self.placement.dtype),
            lora=self.lora,
        )


def check_files(request: Request) -> None:
    """Read the beginning of each input, and copy a picture that is kept, so that bad files fail before sampling."""
    check_request_files(asdict(request))
    if request.keeps_picture:
        with scratch(request.output) as temporary:
            save_video(temporary, request.video)


def make(pipe: AudioXPipeline, request: Request, settings: Settings) -> tuple[str, float]:
    """Generate a sound and write it; return a line about it, and the seconds it took."""
    start = time.perf_counter()
    length = length_in_s(pipe, request)
    line = finish(pipe, request, sample(pipe, [request], length, settings), length, settings)
    return line, time.perf_counter() - start


def length_in_s(pipe: AudioXPipeline, request: Request) -> float:
    """Return the requested seconds, or the pipeline's default; at most the picture's duration if it is kept."""
    if request.length is not None:
        return request.length
    if request.keeps_picture:
        window = pipe.window_samples / pipe.vae.config.sampling_rate
        return min(10.0, window, media_duration(request.video, "picture"))
    return pipe.default_length_in_s(request.prompt)


def sample(pipe: AudioXPipeline, requests: list[Request], length: float, settings: Settings) -> torch.Tensor:
    """
    Generate the latents of several sounds.

    Seeds are used on the CPU, so that a sound starts from the same noise on every device and in every batch.

    Args:
        pipe (`AudioXPipeline`): The pipeline.
        requests (`list[Request]`): Requests that all have the same kinds of negative prompts.
        length (`float`): Seconds of every sound.
        settings (`Settings`): Options of the command.

    Returns:
        `torch.Tensor`: Latents `[B, C, L]`.
    """
    conditions = [request.conditions() for request in requests]
    return pipe(
        **{name: [values[name] for values in conditions] for name in conditions[0]},
        audio_length_in_s=length,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        audio_padding_side=settings.audio_padding,
        output_type="latent",
        **settings.options(pipe, requests),
    ).audios


def finish(pipe: AudioXPipeline, request: Request, latents: torch.Tensor, length: float, settings: Settings) -> str:
    """Decode latents `[1, C, L]` to `length` seconds of sound and write it; return a line about it."""
    rate = pipe.vae.config.sampling_rate

    def decode() -> Iterator[np.ndarray]:
        return (piece[0] for piece in pipe.stream_latents(latents, round(length * rate)))

    peak = max(float(np.abs(piece).max()) for piece in decode()) if settings.normalize else 1.0
    return write(request, decode(), rate, settings.recipe(pipe, request, length), peak or 1.0)


def make_edit(
    pipe: AudioXInpaintPipeline, request: Request, settings: Settings, edit: dict[str, Any]
) -> tuple[str, float]:
    """Edit a sound and write the result; return a line about it, and the seconds it took."""
    start = time.perf_counter()
    pieces = pipe(
        **request.conditions(),
        generator=[torch.Generator().manual_seed(request.seed)],
        output_type="stream",
        **edit,
        **settings.options(pipe, [request]),
    ).audios
    recipe = settings.recipe(pipe, request, edit=edit)
    line = write(request, (piece[0] for piece in pieces), pipe.vae.config.sampling_rate, recipe)
    return line, time.perf_counter() - start


@dataclass
class _Measured:
    """Iterate over pieces of a sound, divided by `level`, and measure them."""

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


def write(request: Request, pieces: Iterator[np.ndarray], rate: int, recipe: Recipe | None, level: float = 1.0) -> str:
    """Write a sound piece by piece, divided by `level`, with the picture if it is kept; return a line about it."""
    path, sound = request.output, _Measured(pieces, level)
    if request.keeps_picture:
        save_video(path, request.video, sound, rate, recipe=recipe)
    else:
        save_audio(path, sound, rate, recipe=recipe)

    kind = CHANNELS.get(sound.channels, f"{sound.channels}-channel")
    line = f"wrote {path}: {sound.samples / rate:.2f} s of {kind} sound at {rate} Hz, peak {sound.peak:.2f}"
    if level != 1:
        line += ", scaled to 1.00"
    if request.keeps_picture:
        picture = media_duration(request.video, "picture")
        # An AAC frame of 1024 samples may be padded.
        if picture > (sound.samples + 1024) / rate:
            line += f"; the video continues without sound until {picture:.2f} s"
    return line
