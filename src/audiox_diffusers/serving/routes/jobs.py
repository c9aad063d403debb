"""Routes for jobs."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..errors import ServingError
from ..fields import body_schema
from ..jobs import FINISHED, Job
from ..listening import listening
from ..service import Service

# Seconds without a change after which a comment keeps a stream of events open.
HEARTBEAT = 15.0


def job_routes(service: Service) -> APIRouter:
    """Return the routes that submit, follow, read and cancel jobs."""
    router, engine = APIRouter(), service.engine

    @router.post("/v1/jobs", status_code=202, summary="Submit a job", openapi_extra=body_schema())
    async def create_job(request: Request) -> JSONResponse:
        job = await service.submit(request)
        return JSONResponse(service.describe(job), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/v1/jobs/{job_id}", summary="Return the state of a job")
    async def get_job(job_id: str) -> dict[str, Any]:
        return service.describe(engine.get(job_id))

    @router.get("/v1/jobs/{job_id}/events", summary="Stream the states of a job as server-sent events")
    async def job_events(job_id: str) -> StreamingResponse:
        events = _events(service, engine.get(job_id))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    @router.get("/v1/jobs/{job_id}/content", summary="Return a sound of a finished job")
    def job_content(job_id: str, index: Annotated[int, Query(ge=0)] = 0) -> Response:
        return service.sound(engine.get(job_id), index)

    @router.get("/v1/jobs/{job_id}/preview", summary="Return the newest preview of the first sound of a job")
    def job_preview(job_id: str) -> Response:
        preview = engine.get(job_id).read_preview()
        if preview is None:
            raise ServingError(404, "the job has no preview; ask for them with preview_every", code="no_preview")
        return Response(preview, media_type="audio/wav", headers={"Cache-Control": "no-store"})

    @router.delete("/v1/jobs/{job_id}", summary="Cancel a job and delete its results")
    async def delete_job(job_id: str) -> dict[str, Any]:
        job = engine.get(job_id)
        engine.remove(job)
        return {"id": job.id, "object": "audio.job", "deleted": True}

    return router


async def _events(service: Service, job: Job) -> AsyncIterator[str]:
    """Yield a server-sent event `progress` after each change. The last event is named after the final status."""
    async with listening(job) as changed:
        while True:
            changed.clear()
            state = service.describe(job)
            name = state["status"] if state["status"] in FINISHED else "progress"
            yield f"event: {name}\ndata: {json.dumps(state)}\n\n"
            if name != "progress":
                return
            while not changed.is_set():
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT)
                except TimeoutError:
                    yield ": still here\n\n"
