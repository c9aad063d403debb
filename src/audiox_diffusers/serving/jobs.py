"""Jobs of the engine: tasks and their progress."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..atomic import remove
from ..generation.request import Request
from ..generation.sounds import Settings
from .errors import ServingError

FINISHED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Task:
    """
    What a job generates.

    Args:
        model (`str`): Name of the model.
        adapters (`tuple[tuple[str, float], ...]`): Names and scales of the LoRA adapters.
        requests (`list[Request]`): One request for each sound, with its output in `folder`.
        settings (`Settings`): Options of all sounds.
        edit (`dict`, *optional*): Edits, as arguments of the pipeline.
        folder (`Path`): Private folder of the job.
        format (`str`): Format of the response, such as `"wav"`.
        preview_every (`int`, *optional*): Steps between previews of the first sound.
        stream (`bool`): Whether to write the sound to `Job.streamed` while it is decoded.
    """

    model: str
    adapters: tuple[tuple[str, float], ...]
    requests: list[Request]
    settings: Settings
    edit: dict[str, Any] | None
    folder: Path
    format: str
    preview_every: int | None = None
    stream: bool = False

    @property
    def batch_key(self) -> tuple | None:
        """Tasks with the same key can be generated together. `None` is for tasks that run alone."""
        first = self.requests[0]
        if self.edit is not None or first.keeps_picture or self.stream:
            return None
        return self.model, self.adapters, first.length, tuple(first.negatives), astuple(self.settings)

    @property
    def seed(self) -> int:
        """Seed of the first sound."""
        return self.requests[0].seed


@dataclass(eq=False)
class Job:
    """
    A task and its progress. The engine changes it; others only read it.

    Attributes:
        status (`str`): `"queued"`, `"running"`, `"succeeded"`, `"failed"` or `"cancelled"`.
        stage (`str`, *optional*): `"load"`, `"encode"`, `"denoise"` or `"decode"`, while the job runs.
        step, steps (`int`): Denoising steps done, and in all. An edit counts again from 0 in each of its passes.
        preview (`Path`, *optional*): WAV file of the first sound as it is so far. A later one replaces it.
        preview_step (`int`, *optional*): Step of the preview.
        streamed (`Path`, *optional*): File that grows while the sound is decoded.
        stream_size (`int`, *optional*): Size that this file will have.
        error (`ServingError`, *optional*): Why the job failed.
        results (`list[Path]`): Files of the sounds, once the job has succeeded.
        sampling_rate (`int`, *optional*): Samples per second of the results.
    """

    task: Task
    id: str = field(default_factory=lambda: f"job-{uuid4().hex}")
    status: str = "queued"
    stage: str | None = None
    step: int = 0
    steps: int | None = None
    error: ServingError | None = None
    sampling_rate: int | None = None
    results: list[Path] = field(default_factory=list)
    preview: Path | None = None
    preview_step: int | None = None
    streamed: Path | None = None
    stream_size: int | None = None
    cancel_requested: bool = False
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None

    def __post_init__(self) -> None:
        self._changed = threading.RLock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    def update(self, **values: Any) -> bool:
        """Set attributes and call the listeners. Return `False` if the job is finished, which changes nothing."""
        with self._changed:
            if self.is_finished:
                return False
            if values.get("status") in FINISHED:
                values["finished"] = time.time()
            for name, value in values.items():
                setattr(self, name, value)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return True

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call a function after each change, in the thread of that change. Return a function that stops this."""
        with self._changed:
            self._listeners.append(listener)

        def stop() -> None:
            with self._changed:
                self._listeners.remove(listener)

        return stop

    def events(self, interval_s: float | None = None) -> Iterator[dict[str, Any]]:
        """
        Yield the state now and after each change, as `describe` returns it, until the job is finished.

        Args:
            interval_s (`float`, *optional*): Seconds after which the state is yielded even without a change.
        """
        changed = threading.Event()
        stop = self.listen(changed.set)
        try:
            while True:
                changed.clear()
                state = self.describe()
                yield state
                if state["status"] in FINISHED:
                    return
                changed.wait(interval_s)
        finally:
            stop()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the job is finished, and return `True`. Return `False` after the timeout."""
        done = threading.Event()
        stop = self.listen(lambda: self.is_finished and done.set())
        try:
            return self.is_finished or done.wait(timeout_s)
        finally:
            stop()

    @property
    def wants_preview(self) -> bool:
        """Whether a preview is due after the current step. The last step needs none."""
        every, done = self.task.preview_every, self.step + 1
        return every is not None and not self.cancel_requested and done % every == 0 and done != self.steps

    def read_preview(self) -> bytes | None:
        """Return the contents of the newest preview."""
        while (path := self.preview) is not None:
            try:
                return path.read_bytes()
            except FileNotFoundError:
                if path == self.preview:
                    return None
        return None

    def show_preview(self, path: Path) -> None:
        """Replace the preview by a newer one."""
        old = self.preview
        self.update(preview=path, preview_step=self.step + 1)
        if old is not None:
            old.unlink(missing_ok=True)

    def describe(self, position: int | None = None) -> dict[str, Any]:
        """Return the state for clients. `position` is the place in the queue, from 0."""
        share = self.step / self.steps if self.steps else 0.0
        elapsed = (self.finished or time.time()) - self.started if self.started else 0.0
        running = self.status == "running"
        return {
            "id": self.id,
            "object": "audio.job",
            "status": self.status,
            "stage": self.stage if running else None,
            "step": self.step,
            "steps": self.steps,
            "progress": 1.0 if self.status == "succeeded" else round(share, 4),
            "position": position,
            "elapsed_s": round(elapsed, 3),
            "preview_step": self.preview_step,
            "eta_s": round(elapsed * (1 - share) / share, 1) if running and share else None,
            "model": self.task.model,
            "seed": self.task.seed,
            "num_sounds": len(self.task.requests),
            "created": int(self.created),
            "error": None if self.error is None else self.error.body()["error"],
        }

    def discard(self) -> None:
        """Remove all files of the job."""
        remove(self.task.folder)
