"""
The page of `audiox serve` as a Hugging Face Space.

`AUDIOX_MODEL` names the model. On ZeroGPU, each run gets a GPU in a process of its own, which loads the model there.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from audiox_diffusers.generation.loading import Placement
from audiox_diffusers.media import MediaBytes
from audiox_diffusers.serving.engine import Engine
from audiox_diffusers.serving.limits import Limits
from audiox_diffusers.serving.models import Models
from audiox_diffusers.serving.page import build_page, page_options
from audiox_diffusers.serving.page.runs import Progress, Runs

try:
    from spaces import GPU
except ImportError:
    GPU = None

MODEL = os.environ.get("AUDIOX_MODEL", "audiox-tiny")
LIMITS = Limits(max_length_s=60.0, max_sounds=4, max_steps=300)
# Removed when the process ends.
SCRATCH = tempfile.TemporaryDirectory(prefix="audiox-space-")
FOLDER = Path(SCRATCH.name)


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def create_engine(device: str) -> Engine:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Engine(Models([MODEL], [], Placement(torch.device(device), dtype), LIMITS), FOLDER, LIMITS)


def run_on_gpu(session: str, values: dict[str, Any], files: dict[str, MediaBytes]) -> Iterator[Progress]:
    """Run a job in the process that has the GPU. A file tells that process to cancel."""
    engine = create_engine(best_device()).start()
    runs, cancelled = Runs(engine), cancel_file(session)
    try:
        for progress in runs.run(session, values, files):
            yield progress
            if cancelled.exists():
                runs.cancel(session)
    finally:
        engine.close(grace_s=0)


def cancel_file(session: str) -> Path:
    return FOLDER / f"cancel-{session.encode().hex()}"


class GpuRuns(Runs):
    """Runs on a GPU that is lent for each of them."""

    def run(self, session: str, values: dict[str, Any], files: dict[str, MediaBytes]) -> Iterator[Progress]:
        cancel_file(session).unlink(missing_ok=True)
        try:
            yield from run_on_gpu(session, values, files)
        finally:
            cancel_file(session).unlink(missing_ok=True)

    def cancel(self, session: str) -> None:
        cancel_file(session).touch()


if GPU is not None:
    run_on_gpu = GPU(duration=120)(run_on_gpu)
    engine = create_engine("cpu")
    page = build_page(engine, GpuRuns(engine))
else:
    engine = create_engine(best_device()).start()
    page = build_page(engine)

if __name__ == "__main__":
    page.launch(**page_options(engine))
