"""Wait for changes of jobs in the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from .errors import ServingError
from .jobs import Job


@asynccontextmanager
async def listening(job: Job, condition: Callable[[], bool] = lambda: True) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set after each change of a job, if a condition then holds."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def notify() -> None:
        if condition():
            # The loop may be closed already when the engine ends the last jobs.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

    stop = job.listen(notify)
    try:
        yield changed
    finally:
        stop()


async def until(request: Request, job: Job, condition: Callable[[], bool]) -> None:
    """Wait until a job fulfils a condition. Raise status 499 if the client disconnects first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def fulfilled() -> None:
        async with listening(job, condition) as changed:
            if not condition():
                await changed.wait()

    waiting = [asyncio.ensure_future(fulfilled()), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not condition():
            raise ServingError(499, "the client disconnected", code="disconnected")
    finally:
        for task in waiting:
            task.cancel()
