"""Progress, previews and cancelling, from inside a running pipeline."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Self

import numpy as np
import torch

from ..media import save_audio
from ..pipelines import AudioXPipeline
from .jobs import Job
from .metrics import Metrics
from .streams import append

logger = logging.getLogger(__name__)

# Seconds of a preview at most.
PREVIEW_S = 30.0


class Cancelled(Exception):
    """All jobs of a batch were cancelled."""


@contextmanager
def observed(pipe: AudioXPipeline, rows: list[Job], metrics: Metrics) -> Iterator[AudioXPipeline]:
    """
    Report the progress of a pipeline to jobs, decode previews, and stop when all jobs are cancelled.

    The progress bar and the scheduler are wrapped instead of passing a callback, because a callback makes the pipeline
    encode its context again in each step.

    Args:
        pipe (`AudioXPipeline`): The pipeline. It is unchanged at the end.
        rows (`list[Job]`): The job of each sound of the batch.
        metrics (`Metrics`): Where to count steps.

    Raises:
        Cancelled: All jobs were cancelled.
    """
    jobs = list(dict.fromkeys(rows))

    def check() -> None:
        if all(job.cancel_requested for job in jobs):
            raise Cancelled

    class Bar:
        def __init__(self, total: int) -> None:
            self.total, self.step = total, 0

        def __enter__(self) -> Self:
            check()
            for job in jobs:
                job.update(stage="denoise", step=0, steps=self.total)
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self) -> None:
            self.step += 1
            metrics.steps.inc()
            for job in jobs:
                job.update(step=self.step)
            check()

    original_stream = pipe._stream

    def stream(pieces: Iterator[torch.Tensor]) -> Iterator[np.ndarray]:
        for piece in original_stream(pieces):
            check()
            if jobs[0].task.stream:
                append(jobs[0], piece[0])
            yield piece

    scheduler = pipe.scheduler
    original_step = scheduler.step

    @wraps(original_step)
    def step(velocity: torch.Tensor, t: torch.Tensor, sample: torch.Tensor, **kwargs: Any) -> Any:
        due = [rows.index(job) for job in jobs if job.wants_preview]
        denoised = _denoised(scheduler, velocity, t, sample) if due else None
        result = original_step(velocity, t, sample, **kwargs)
        for row in due:
            _save_preview(pipe, rows[row], denoised[row : row + 1])
        return result

    pipe.progress_bar = lambda iterable=None, total=None: Bar(total)
    pipe._stream = stream
    scheduler.step = step
    for job in jobs:
        job.update(stage="encode")
    try:
        check()
        yield pipe
    finally:
        del pipe.progress_bar, pipe._stream, scheduler.step


def _denoised(scheduler: Any, velocity: torch.Tensor, t: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Return what a step denoises to. The velocity is linear in that, for every scheduler of AudioX."""
    zero, one = (scheduler.velocity(torch.full_like(sample, value), sample, t) for value in (0.0, 1.0))
    return (velocity - zero) / (one - zero)


def _save_preview(pipe: AudioXPipeline, job: Job, latents: torch.Tensor) -> None:
    """Decode the first sound of a job as it is so far. A preview that fails does not fail the job."""
    rate = pipe.vae.config.sampling_rate
    frames = latents.shape[-1]
    samples = round(min(frames * pipe.vae.hop_length, PREVIEW_S * rate))
    try:
        with torch.no_grad():
            pieces = [piece[0].cpu().numpy() for piece in pipe._decode(latents, samples)]
        path = job.task.folder / f"preview-{job.step + 1}.wav"
        save_audio(path, np.clip(np.concatenate(pieces, axis=-1), -1, 1), rate)
    except Exception:
        logger.exception("A preview could not be decoded.")
        return
    job.show_preview(path)
