"""
One thread that owns the models, and a bounded queue in front of it.

A request is a dict of the fields of `serving.fields.AudioFields`, and its files as `MediaBytes`:

```py
models = Models(["audiox-tiny"], [], Placement(torch.device("cpu")), limits)
engine = Engine(models, folder, limits).start()
job = engine.submit({"input": "rain", "audio_length": 2, "preview_every": 4}, {"video": MediaBytes(data, "clip.mp4")})
for state in job.events():
    print(state["status"], state["stage"], state["step"], state["steps"], job.preview)
print(job.results if job.status == "succeeded" else job.error)
engine.remove(job)
engine.close()
```

`submit` checks everything that can be checked before the model runs, and raises `ServingError`, whose `message` is for
the user and whose `param` names the field. `engine.position(job)` is the place of a job in the queue,
`engine.cancel(job)` stops it at its next step, and `engine.remove(job)` deletes its files. All methods may be called
from any thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psutil
import torch

from ..generation.sounds import finish, length_in_s, make_edit, sample
from ..media import MediaBytes
from ..messages import describe
from ..pipelines import AudioXInpaintPipeline, AudioXPipeline
from .errors import ServingError
from .jobs import Job, Task
from .limits import Limits
from .metrics import Metrics
from .models import Models
from .observing import Cancelled, observed
from .streams import begin_stream
from .tasks import build_body, build_task

logger = logging.getLogger(__name__)

# Seconds between two checks for old results and idle models.
CLEANUP_INTERVAL = 1.0
# Finished jobs that are kept.
MAX_FINISHED = 1000


class Engine:
    """
    Generate sounds for jobs, one batch at a time.

    Jobs wait in a queue. The engine's thread takes the first one, together with later ones that can be generated in
    the same batch. Each sound has its own generator, so that it does not depend on its batch, up to rounding. A batch
    of one sound is equal to the bit to that of the command line.

    Args:
        models (`Models`): The models.
        folder (`Path`): Folder for the files of jobs. It must exist.
        limits (`Limits`): Limits of the server.
    """

    def __init__(self, models: Models, folder: Path, limits: Limits) -> None:
        self.models, self.folder, self.limits = models, folder, limits
        self.metrics = Metrics()
        self.ready = False
        self.startup_error: Exception | None = None
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._running: list[Job] = []
        self._reserved = 0
        self._closing = False
        self._seconds_per_job = 5.0
        self._thread = threading.Thread(target=self._work, name="audiox-engine", daemon=True)

    def start(self) -> Self:
        """
        Start the thread. It loads the first model and runs one step.

        After that `ready` is true. If it fails, `startup_error` says why, and requests load the model again.
        """
        self._thread.start()
        return self

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """
        Hold a place in the queue while a request is read.

        Raises:
            ServingError: The queue is full (429) or the server shuts down (503).
        """
        with self._changed:
            if self._closing:
                raise _shutting_down()
            if len(self._queue) + self._reserved >= self.limits.max_queue:
                wait = 1 + round(self._seconds_per_job * len(self._queue))
                raise ServingError(
                    429,
                    f"the queue is full ({self.limits.max_queue} requests); try again in about {wait} s",
                    code="queue_full",
                    retry_after_s=wait,
                )
            self._reserved += 1
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= 1

    def new_folder(self) -> Path:
        """Create a private folder for the files of a job."""
        folder = self.folder / uuid4().hex
        folder.mkdir(mode=0o700)
        return folder

    def submit(self, values: dict[str, Any], files: dict[str, MediaBytes] | None = None) -> Job:
        """
        Check a request and put it into the queue.

        Args:
            values (`dict`): Fields of the request, as for `POST /v1/jobs`.
            files (`dict[str, MediaBytes]`, *optional*): Files by field, such as `"video"`.

        Returns:
            `Job`: The job, which waits in the queue.

        Raises:
            ServingError: A field or file is wrong (400), the queue is full (429), or the server shuts down (503).
        """
        with self.reserve():
            return self.enqueue(build_task(build_body(values, files or {}), self))

    def enqueue(self, task: Task) -> Job:
        """Put a task into the queue. Call it while `reserve` holds a place."""
        job = Job(task)
        with self._changed:
            if self._closing:
                job.discard()
                raise _shutting_down()
            self._queue.append(job)
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job

    def get(self, job_id: str) -> Job:
        """Return a job. Raise status 404 for unknown ids."""
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None:
            raise ServingError(404, "no such job; finished jobs are kept for a limited time", code="job_not_found")
        return job

    def position(self, job: Job) -> int | None:
        """Return the place of a job in the queue, from 0; `None` if it does not wait."""
        with self._changed:
            return self._queue.index(job) if job in self._queue else None

    def cancel(self, job: Job) -> None:
        """Cancel a job. A running one stops after its current step."""
        with self._changed:
            job.cancel_requested = True
            waiting = job in self._queue
            if waiting:
                self._queue.remove(job)
        if waiting:
            self._end(job, status="cancelled")

    def remove(self, job: Job) -> None:
        """Cancel a job, and forget it and its files as soon as nothing uses them."""
        self.cancel(job)
        with self._changed:
            self._jobs.pop(job.id, None)
            if job.is_finished or job not in self._running:
                job.discard()

    def begin_shutdown(self, grace_s: float) -> None:
        """Refuse new jobs, fail those that wait with status 503, and give the running ones some seconds to finish."""
        with self._changed:
            self._closing = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for job in waiting:
            self._end(job, status="failed", error=_shutting_down())
        timer = threading.Timer(grace_s, self._cancel_running)
        timer.daemon = True
        timer.start()

    def close(self, grace_s: float = 10.0) -> None:
        """Stop: give running jobs some seconds to finish, then cancel them, and remove all files."""
        self.begin_shutdown(grace_s)
        # A step can take long, and a model can take long to load. The process does not wait for those.
        self.join(2 * grace_s)
        with self._changed:
            jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.discard()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _cancel_running(self) -> None:
        for job in list(self._running):
            self.cancel(job)

    def describe_metrics(self) -> str:
        """Return all metrics in the text format of Prometheus."""
        with self._changed:
            self.metrics.queue.set(len(self._queue) + self._reserved)
            self.metrics.results.set(sum(_size(job) for job in self._jobs.values()))
        loaded = list(self.models.loaded.values())
        self.metrics.models.set(len(loaded))
        self.metrics.model_bytes.set(sum(model.size for model in loaded))
        self.metrics.memory.set(psutil.Process().memory_info().rss)
        return self.metrics.text()

    def _work(self) -> None:
        try:
            self._warm_up()
        except Exception as error:
            logger.exception("The first model could not be loaded.")
            self.startup_error = error
        while (jobs := self._next_batch()) is not None:
            if jobs:
                self._run(jobs)
            self._clean_up()

    def _warm_up(self) -> None:
        pipe = self.models.get(self.models.default)
        pipe.set_progress_bar_config(disable=True)
        pipe("warm-up", num_inference_steps=1, generator=torch.Generator().manual_seed(0))
        self.ready = True

    def _next_batch(self) -> list[Job] | None:
        """Wait for jobs that fit into one batch. Return an empty list if none comes for a while, and `None` at the end."""
        with self._changed:
            if not self._queue and not self._closing:
                self._changed.wait(CLEANUP_INTERVAL)
            if not self._queue:
                return None if self._closing else []
            first = self._queue.popleft()
            batch, count, key = [first], len(first.task.requests), first.task.batch_key
            for job in list(self._queue):
                size = len(job.task.requests)
                if key is not None and job.task.batch_key == key and count + size <= self.limits.max_batch:
                    self._queue.remove(job)
                    batch.append(job)
                    count += size
            self._running = batch
        return batch

    def _run(self, jobs: list[Job]) -> None:
        start = time.time()
        for job in jobs:
            self.metrics.wait.observe(start - job.created)
            job.update(status="running", stage="load", started=start)
        try:
            self._generate(jobs)
        finally:
            with self._changed:
                self._running = []
                forgotten = [job for job in jobs if job.id not in self._jobs]
            for job in forgotten:
                job.discard()
            seconds = time.time() - start
            self._seconds_per_job += 0.2 * (seconds / len(jobs) - self._seconds_per_job)
            self.metrics.generation.observe(seconds)

    def _generate(self, jobs: list[Job]) -> None:
        """Generate the sounds of some jobs. If they fail together, each is tried alone."""
        task = jobs[0].task
        try:
            pipe = self.models.get(task.model, task.adapters)
            self.ready = True
            for job in jobs:
                job.update(sampling_rate=pipe.vae.config.sampling_rate)
            if task.edit:
                self._generate_edit(pipe, jobs[0])
            else:
                self._generate_batch(pipe, jobs)
        except Cancelled:
            pass
        except Exception as error:
            if self.models.placement.device.type == "cuda":
                torch.cuda.empty_cache()
            unfinished = [job for job in jobs if not job.is_finished and not job.cancel_requested]
            if len(jobs) > 1:
                for job in unfinished:
                    self._generate([job])
            elif unfinished:
                self._end(jobs[0], status="failed", error=_for_client(error, task))
        for job in jobs:
            if job.cancel_requested and self._closing:
                self._end(job, status="failed", error=_shutting_down())
            elif job.cancel_requested:
                self._end(job, status="cancelled")

    def _generate_batch(self, pipe: AudioXPipeline, jobs: list[Job]) -> None:
        pairs = [(job, request) for job in jobs for request in job.task.requests]
        settings, length = jobs[0].task.settings, length_in_s(pipe, pairs[0][1])
        if jobs[0].task.stream:
            begin_stream(jobs[0], pipe, round(length * pipe.vae.config.sampling_rate))
        for first in range(0, len(pairs), self.limits.max_batch):
            part = pairs[first : first + self.limits.max_batch]
            self.metrics.batches.observe(len(part))
            with observed(pipe, [job for job, _ in part], self.metrics):
                latents = sample(pipe, [request for _, request in part], length, settings)
                for (job, request), own in zip(part, latents.split(1), strict=True):
                    if not job.cancel_requested:
                        job.update(stage="decode")
                        finish(pipe, request, own, length, settings)
                        self.metrics.audio.inc(length)
                        self._add_result(job, request.output)

    def _generate_edit(self, pipe: AudioXPipeline, job: Job) -> None:
        editor = AudioXInpaintPipeline.from_pipe(pipe)
        for request in job.task.requests:
            self.metrics.batches.observe(1)
            with observed(editor, [job], self.metrics):
                make_edit(editor, request, job.task.settings, job.task.edit)
            self._add_result(job, request.output)

    def _add_result(self, job: Job, result: Path) -> None:
        """Add a sound to a job, which ends with its last sound and does not wait for the others of its batch."""
        job.results.append(result)
        if len(job.results) == len(job.task.requests):
            self._end(job, status="succeeded")

    def _end(self, job: Job, **values: Any) -> None:
        if job.update(**values):
            self.metrics.jobs.labels(values["status"]).inc()

    def _clean_up(self) -> None:
        """Delete finished jobs that are too old, too many or too large, and unload idle models."""
        oldest = time.time() - self.limits.result_lifetime_s
        with self._changed:
            finished = sorted((job for job in self._jobs.values() if job.finished), key=lambda job: job.finished)
            total, expired = sum(map(_size, finished)), []
            for number, job in enumerate(finished):
                too_many = len(finished) - number > MAX_FINISHED or total > self.limits.max_results_bytes
                if job.finished < oldest or too_many:
                    total -= _size(job)
                    expired.append(self._jobs.pop(job.id))
        for job in expired:
            job.discard()
        self.models.unload_idle()


def _for_client(error: Exception, task: Task) -> ServingError:
    """Return an error for the client, without paths of the server."""
    if isinstance(error, ServingError):
        return error
    message = describe(error).replace(f"{task.folder}/", "").replace(str(task.folder), "")
    if isinstance(error, ValueError):
        return ServingError(400, message, code="invalid_value")
    logger.error("A job failed.", exc_info=error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ServingError(503, "out of memory; ask for fewer sounds or a shorter one", code="out_of_memory")
    return ServingError(500, "internal error; the server's log says more", code="internal_error")


def _shutting_down() -> ServingError:
    return ServingError(503, "the server is shutting down", code="shutting_down", retry_after_s=10)


def _size(job: Job) -> int:
    return sum(path.stat().st_size for path in job.results if path.is_file())
