"""Making the sounds that the bench judges."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ..pipelines import AudioXPipeline
from ..scenes import scene_seed
from .items import Bench, Item


@dataclass(frozen=True)
class Sampling:
    """
    How sounds are made.

    Attributes:
        num_inference_steps, guidance_scale: as of the pipeline; `None` for its own.
        eta: amount of noise that the scheduler adds at each step, 0 to 1; `None` for its own.
        batch_size: sounds that are made at a time.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    batch_size: int = 16

    def __post_init__(self):
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be 1 or more, got {self.num_inference_steps!r}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"`eta` must be in 0..1, got {self.eta!r}")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more, got {self.batch_size!r}")


class Studio:
    """
    Makes sounds with a pipeline, each request of a seed only once.

    Args:
        pipe: the pipeline.
        bench: whose requests they are.
        sampling: how they are made.

    Attributes:
        made: how many sounds were made so far.
        seconds: how long that took.
    """

    def __init__(self, pipe: AudioXPipeline, bench: Bench, sampling: Sampling):
        self.pipe, self.bench, self.sampling = pipe, bench, sampling
        self.made, self.seconds = 0, 0.0
        self._sounds: dict[tuple[Item, int], np.ndarray] = {}

    def sounds(self, items: Sequence[Item], seed: int) -> list[np.ndarray]:
        """A sound for each request, as [`~bench.hearing.listen`] gives it."""
        missing = [item for item in items if (item, seed) not in self._sounds]
        start = time.perf_counter()
        with scheduler_with_eta(self.pipe, self.sampling.eta):
            for first in range(0, len(missing), self.sampling.batch_size):
                batch = missing[first : first + self.sampling.batch_size]
                for item, sound in zip(batch, self._make(batch, seed), strict=True):
                    self._sounds[item, seed] = self.bench.listen(sound)
        self.made, self.seconds = self.made + len(missing), self.seconds + time.perf_counter() - start
        return [self._sounds[item, seed] for item in items]

    def _make(self, items: Sequence[Item], seed: int) -> np.ndarray:
        """`[B, channels, samples]`."""
        prompts = {name: [getattr(item, name) for item in items] for name in ("prompt", "video", "image", "audio")}
        options = {
            "num_inference_steps": self.sampling.num_inference_steps,
            "guidance_scale": self.sampling.guidance_scale,
        }
        return self.pipe(
            **{name: values for name, values in prompts.items() if any(value is not None for value in values)},
            **{name: value for name, value in options.items() if value is not None},
            audio_length_in_s=self.bench.seconds,
            # On the CPU, so that the noise is the same on all devices.
            generator=[torch.Generator().manual_seed(scene_seed(seed, item.noise)) for item in items],
        ).audios


@contextmanager
def scheduler_with_eta(pipe: AudioXPipeline, eta: float | None) -> Iterator[None]:
    """Give a pipeline a scheduler with another `eta` for a while; `ValueError` if its scheduler has none."""
    if eta is None:
        yield
        return
    scheduler = pipe.scheduler
    if "eta" not in scheduler.config:
        raise ValueError(f"`eta` is given, and {type(scheduler).__name__} has none")
    pipe.scheduler = type(scheduler).from_config(scheduler.config, eta=eta)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
