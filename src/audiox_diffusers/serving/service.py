"""Requests to the engine, and its sounds as responses: what the routes share."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from ..media import MediaBytes
from .bodies import read_json, read_values
from .engine import Engine
from .errors import ServingError, bad_field
from .fields import FORMATS, MEDIA
from .jobs import Job
from .listening import until
from .responses import Temporary, follow, headers_of, in_memory, samples_of
from .tasks import build_body, build_task

# Requests whose files are checked at the same time, which bounds memory.
CHECKED_AT_ONCE = 2


class Service:
    """
    Submit requests to an engine, and answer them.

    Args:
        engine (`Engine`): The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._checks = asyncio.Semaphore(CHECKED_AT_ONCE)

    async def submit(self, request: Request, most_sounds: int | None = None) -> Job:
        """
        Queue a request in the server's own format.

        Args:
            request (`Request`): The request.
            most_sounds (`int`, *optional*): Maximum number of sounds that the route returns. `None` for jobs.

        Raises:
            ServingError: A field or a file is wrong (400), or the queue is full (429).
        """
        with self.engine.reserve():
            values, files = await read_values(request, self.engine.limits)
            return await self._enqueue(values, files, most_sounds)

    async def submit_converted(self, request: Request, convert: Callable[[dict], dict]) -> Job:
        """Queue a request for one sound in another server's format, which `convert` turns into fields."""
        with self.engine.reserve():
            return await self._enqueue(convert(await read_json(request, self.engine.limits)), {}, most_sounds=1)

    async def _enqueue(self, values: dict[str, Any], files: dict[str, MediaBytes], most_sounds: int | None) -> Job:
        # Requests without media are checked at once: waiting for another thread would take longer.
        has_media = bool(files) or any(values.get(name) for name in MEDIA)
        run = run_in_threadpool if has_media else _run_now
        async with self._checks if has_media else nullcontext():
            body = await run(build_body, values, files)
            if body.fields.stream and most_sounds is None:
                raise bad_field("stream", "does not go with jobs; use /v1/audio/generate")
            return self.engine.enqueue(await run(build_task, body, self.engine, most_sounds))

    async def answer(self, request: Request, job: Job) -> Response:
        """Return the only sound of a job as soon as it is finished or can be streamed, and remove the job afterwards."""
        try:
            await until(request, job, lambda: job.is_finished or job.streamed is not None)
            if job.streamed is not None and job.error is None:
                media_type = FORMATS[job.task.format][1]
                response = StreamingResponse(follow(job), media_type=media_type, headers=headers_of(job))
            else:
                response = in_memory(self.sound(job, 0))
        except BaseException:
            self.engine.remove(job)
            raise
        return Temporary(response, partial(self.engine.remove, job), self.engine.limits.result_lifetime_s)

    def sound(self, job: Job, index: int) -> Response:
        """
        Return a sound of a finished job.

        Raises:
            ServingError: The job failed, is not finished (409), or has no such sound (400).
        """
        if job.error is not None:
            raise job.error
        if job.status != "succeeded":
            raise ServingError(409, f"the job has no result: it is {job.status}", code=f"job_{job.status}")
        if index >= len(job.results):
            raise bad_field("index", f"must be below {len(job.results)}, got {index}")
        path, (_, media_type) = job.results[index], FORMATS[job.task.format]
        if not path.is_file():
            raise ServingError(404, "the result was deleted", code="job_not_found")
        if job.task.format == "pcm":
            return StreamingResponse(samples_of(path), media_type=media_type, headers=headers_of(job, index))
        return FileResponse(path, media_type=media_type, headers=headers_of(job, index))

    def describe(self, job: Job) -> dict[str, Any]:
        """Return the state of a job with its place in the queue."""
        return job.describe(self.engine.position(job))


async def _run_now(function: Callable, *args: Any) -> Any:
    return function(*args)
