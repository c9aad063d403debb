"""Sounds as the bodies of responses."""

import asyncio
import os
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from .jobs import FINISHED, Job
from .listening import listening

CHUNK = 2**16
# Larger files are sent piece by piece, in bytes.
LARGE = 2**21


class Temporary(Response):
    """
    A response that cleans up when it was sent, when its client disconnects, or when sending takes too long.

    Args:
        response (`Response`): The response.
        clean_up (`Callable`): Called at the end in any case.
        timeout_s (`float`): Seconds that sending may take.
    """

    def __init__(self, response: Response, clean_up: Callable[[], None], timeout_s: float):
        self.response, self.clean_up, self.timeout_s = response, clean_up, timeout_s
        self.background = None

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.response(scope, receive, send)
        finally:
            self.clean_up()


def headers_of(job: Job, index: int = 0) -> dict[str, str]:
    """Return the headers of a sound."""
    headers = {"X-Seed": str(job.task.seed + index), "X-Sample-Rate": str(job.sampling_rate), "X-Job-Id": job.id}
    return headers if job.stream_size is None else {**headers, "Content-Length": str(job.stream_size)}


async def samples_of(path: Path) -> AsyncIterator[bytes]:
    """Yield the samples of a WAV file without its header."""
    with wave.open(str(path)) as file:
        while frames := await run_in_threadpool(file.readframes, CHUNK):
            yield frames


def in_memory(response: Response) -> Response:
    """Read the file of a response if it is small, because it is then sent sooner."""
    if not isinstance(response, FileResponse) or os.stat(response.path).st_size > LARGE:
        return response
    data = Path(response.path).read_bytes()
    headers = {name: value for name, value in response.headers.items() if name.startswith("x-")}
    return Response(data, media_type=response.media_type, headers=headers)


async def read_sound(response: Response) -> bytes:
    """Return the body of a response with a sound."""
    if isinstance(response, FileResponse):
        return await run_in_threadpool(Path(response.path).read_bytes)
    return b"".join([part async for part in response.body_iterator])


async def follow(job: Job) -> AsyncIterator[bytes]:
    """
    Yield the bytes of a sound while the engine decodes it.

    Raises:
        ServingError: The job failed. The client then sees that the body is shorter than its `Content-Length`.
    """
    with job.streamed.open("rb") as file:
        async with listening(job) as changed:
            while True:
                changed.clear()
                status = job.status
                while data := await run_in_threadpool(file.read, CHUNK):
                    yield data
                if status in FINISHED:
                    break
                await changed.wait()
    if job.error is not None:
        raise job.error
