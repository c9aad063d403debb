"""Generation of the sounds that the bench scores."""

import time
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..option_types import guider_arguments
from ..pipelines import AudioXPipeline
from ..pipelines.guidance import create_guider
from ..scenes import scene_seed
from .items import Bench, Item


@dataclass(frozen=True)
class SamplingOptions:
    """
    Options of the pipeline.

    Attributes:
        num_inference_steps: Number of denoising steps; `None` for the pipeline's default.
        guidance_scale: Guidance scale, or weights by modality; `None` for the pipeline's default.
        eta: Amount of noise that the scheduler adds at each step, from 0 to 1; `None` for the scheduler's own.
        batch_size: Number of sounds generated at once.
        guidance_interval: Times between which guidance is on.
        guider: Guider that replaces plain guidance, such as "apg" or "apg:eta=0.5".

    Raises:
        ValueError: If a value is out of range.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | dict[str, float] | None = None
    eta: float | None = None
    batch_size: int = 16
    guidance_interval: tuple[float, float] | None = None
    guider: str | None = None

    def __post_init__(self):
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be 1 or more, got {self.num_inference_steps!r}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"`eta` must be in 0..1, got {self.eta!r}")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more, got {self.batch_size!r}")
        if self.guider is None:
            return
        try:
            guider_arguments(self.guider)
        except ArgumentTypeError as error:
            raise ValueError(f"`guider` {error}") from None
        if isinstance(self.guidance_scale, dict) or self.guidance_interval is not None:
            raise ValueError("`guider` needs a number as `guidance_scale`, and no `guidance_interval`")


class SoundGenerator:
    """
    Generates the sounds of items with a pipeline and keeps them, so that each item and seed is generated once.

    Attributes:
        num_generated: Number of sounds generated so far.
        seconds: Time that it took.
    """

    def __init__(self, pipe: AudioXPipeline, bench: Bench, options: SamplingOptions):
        self.pipe, self.bench, self.options = pipe, bench, options
        self.num_generated, self.seconds = 0, 0.0
        self._sounds: dict[tuple[Item, int], np.ndarray] = {}

    def generate(self, items: Sequence[Item], seed: int) -> list[np.ndarray]:
        """Return a preprocessed sound for each item."""
        missing = [item for item in items if (item, seed) not in self._sounds]
        start = time.perf_counter()
        with scheduler_with_eta(self.pipe, self.options.eta):
            for first in range(0, len(missing), self.options.batch_size):
                batch = missing[first : first + self.options.batch_size]
                for item, sound in zip(batch, self._run_pipeline(batch, seed), strict=True):
                    self._sounds[item, seed] = self.bench.preprocess(sound)
        self.num_generated += len(missing)
        self.seconds += time.perf_counter() - start
        return [self._sounds[item, seed] for item in items]

    def _run_pipeline(self, items: Sequence[Item], seed: int) -> np.ndarray:
        """Return the waveforms `[B, channels, samples]`."""
        prompts = {name: [getattr(item, name) for item in items] for name in ("prompt", "video", "image", "audio")}
        prompts = {name: values for name, values in prompts.items() if any(value is not None for value in values)}
        options = {"num_inference_steps": self.options.num_inference_steps, **self._guidance(prompts)}
        return self.pipe(
            **prompts,
            **{name: value for name, value in options.items() if value is not None},
            audio_length_in_s=self.bench.seconds,
            # On the CPU, so that the noise is the same on all devices.
            generator=[torch.Generator().manual_seed(scene_seed(seed, item.noise)) for item in items],
        ).audios

    def _guidance(self, prompts: Iterable[str]) -> dict[str, Any]:
        """Return the guidance arguments of the pipeline for these kinds of prompts."""
        scale = self.options.guidance_scale
        if self.options.guider is not None:
            scale = self.pipe.config.default_guidance_scale if scale is None else scale
            return {"guider": create_guider(self.options.guider, scale)}
        if isinstance(scale, dict):
            modalities = {"prompt": "text", "video": "video", "image": "video", "audio": "audio"}
            given = {modalities[name] for name in prompts}
            scale = {name: weight for name, weight in scale.items() if name in given} or 1.0
        return {"guidance_scale": scale, "guidance_interval": self.options.guidance_interval}


@contextmanager
def scheduler_with_eta(pipe: AudioXPipeline, eta: float | None) -> Iterator[None]:
    """Set the `eta` of a pipeline's scheduler within the context; raise `ValueError` if the scheduler has no `eta`."""
    if eta is None:
        yield
        return
    scheduler = pipe.scheduler
    if "eta" not in scheduler.config:
        raise ValueError(f"`eta` is given, but {type(scheduler).__name__} does not have it")
    pipe.scheduler = type(scheduler).from_config(scheduler.config, eta=eta)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
