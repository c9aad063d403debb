"""The HTTP API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from ..media import MediaBytes
from ..messages import one_line
from ..version import __version__
from . import compatible
from .bodies import read_json, read_values
from .engine import Engine
from .errors import ServingError, bad_field
from .fields import FORMATS, MEDIA, AudioFields
from .guard import Guard
from .jobs import FINISHED, Job
from .listening import listening, until
from .sounds import Temporary, follow, headers_of, in_memory, read_sound, samples_of
from .tasks import build_body, build_task

# Seconds without news after which a comment keeps a stream of events open.
HEARTBEAT = 15.0
# Requests whose files are checked at the same time, which bounds memory.
CHECKED_AT_ONCE = 2

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]

DESCRIPTION = (
    "Generate and edit audio with AudioX. Media are file parts of a form, or base64 data URIs in JSON. URLs and paths"
    " are never opened."
)


def create_app(engine: Engine, token: str | None = None, hosts: tuple[str, ...] = ()) -> FastAPI:
    """
    Create the API of an engine.

    Args:
        engine (`Engine`): The engine. The caller starts and closes it.
        token (`str`, *optional*): Token that clients must send.
        hosts (`tuple[str, ...]`): Names by which clients may address a server without a token, beside those of the
            loopback interface.
    """
    checks = asyncio.Semaphore(CHECKED_AT_ONCE)
    app = FastAPI(title="audiox", version=__version__, description=DESCRIPTION)
    app.add_middleware(Guard, token=token, hosts=hosts, metrics=engine.metrics)
    _add_error_handlers(app)

    async def submit(values: dict[str, Any], files: dict[str, MediaBytes], most_sounds: int | None = None) -> Job:
        """Check a request and put it into the queue. Call it while the engine holds a place."""
        # Requests without media are checked at once: waiting for another thread would take longer.
        has_media = bool(files) or any(values.get(name) for name in MEDIA)
        run = run_in_threadpool if has_media else _run_now
        async with checks if has_media else nullcontext():
            body = await run(build_body, values, files)
            if body.fields.stream and most_sounds is None:
                raise bad_field("stream", "does not go with jobs; use /v1/audio/generate")
            return engine.enqueue(await run(build_task, body, engine, most_sounds))

    async def submit_converted(request: Request, convert: Callable[[dict], dict]) -> Job:
        with engine.reserve():
            return await submit(convert(await read_json(request, engine.limits)), {}, most_sounds=1)

    async def wait(request: Request, job: Job) -> Response:
        """Return the only sound of a job, when it is finished or can be streamed. A client that goes away cancels it."""
        try:
            await until(request, job, lambda: job.is_finished or job.streamed is not None)
            if job.streamed is not None and job.error is None:
                response = streamed(job)
            else:
                response = in_memory(content(job, 0))
        except BaseException:
            engine.remove(job)
            raise
        return Temporary(response, partial(engine.remove, job), engine.limits.result_lifetime_s)

    def content(job: Job, index: int) -> Response:
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

    def streamed(job: Job) -> Response:
        return StreamingResponse(follow(job), media_type=FORMATS[job.task.format][1], headers=headers_of(job))

    def describe(job: Job) -> dict[str, Any]:
        return job.describe(engine.position(job))

    @app.post("/v1/audio/generate", summary="Generate or edit a sound", **_body_schema())
    async def generate(request: Request) -> Response:
        with engine.reserve():
            job = await submit(*await read_values(request, engine.limits), most_sounds=1)
        return await wait(request, job)

    @app.post("/v1/audio/speech", summary="Generate a sound, for clients of OpenAI's speech API")
    async def speech(request: Request) -> Response:
        return await wait(request, await submit_converted(request, compatible.from_speech))

    @app.post("/v1/chat/completions", summary="Generate a sound, for clients of vLLM-Omni's AudioX")
    async def chat(request: Request) -> Response:
        job = await submit_converted(request, compatible.from_chat)
        try:
            await until(request, job, lambda: job.is_finished)
            sound = await read_sound(content(job, 0))
        finally:
            engine.remove(job)
        return JSONResponse(await run_in_threadpool(compatible.to_chat, job, sound))

    @app.post("/hf", summary="Generate a sound, for clients of Hugging Face endpoints")
    async def hugging_face(request: Request) -> Response:
        return await wait(request, await submit_converted(request, compatible.from_hugging_face))

    @app.post("/v1/jobs", status_code=202, summary="Submit a job", **_body_schema())
    async def create_job(request: Request) -> JSONResponse:
        with engine.reserve():
            job = await submit(*await read_values(request, engine.limits))
        return JSONResponse(describe(job), 202, {"Location": f"/v1/jobs/{job.id}"})

    @app.get("/v1/jobs/{job_id}", summary="Return the state of a job")
    async def get_job(job_id: str) -> dict[str, Any]:
        return describe(engine.get(job_id))

    @app.get("/v1/jobs/{job_id}/events", summary="Stream the states of a job as server-sent events")
    async def job_events(job_id: str) -> StreamingResponse:
        job = engine.get(job_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(job, describe), media_type="text/event-stream", headers=headers)

    @app.get("/v1/jobs/{job_id}/content", summary="Return a sound of a finished job")
    def job_content(job_id: str, index: Annotated[int, Query(ge=0)] = 0) -> Response:
        return content(engine.get(job_id), index)

    @app.get("/v1/jobs/{job_id}/preview", summary="Return the first sound of a running job as it is so far")
    def job_preview(job_id: str) -> Response:
        preview = engine.get(job_id).read_preview()
        if preview is None:
            raise ServingError(404, "the job has no preview; ask for them with preview_every", code="no_preview")
        return Response(preview, media_type="audio/wav", headers={"Cache-Control": "no-store"})

    @app.delete("/v1/jobs/{job_id}", summary="Cancel a job and forget its results")
    async def delete_job(job_id: str) -> dict[str, Any]:
        job = engine.get(job_id)
        engine.remove(job)
        return {"id": job.id, "object": "audio.job", "deleted": True}

    @app.get("/v1/models", summary="List the models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": engine.models.describe()}

    @app.get("/v1/models/{name:path}", summary="Describe a model")
    def model(name: str) -> dict[str, Any]:
        engine.models.resolve(name)
        return next(item for item in engine.models.describe() if item["id"] == name)

    @app.get("/health", summary="Tell that the server lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Tell whether the first model is loaded")
    async def ready() -> dict[str, str]:
        if not engine.ready:
            raise ServingError(503, "the first model is not loaded yet", code="not_ready", retry_after_s=1)
        return {"status": "ready"}

    @app.get("/metrics", summary="Return metrics in the format of Prometheus")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(engine.describe_metrics(), media_type="text/plain; version=0.0.4")

    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    def unknown(path: str, request: Request) -> None:
        # Without this, the page would answer.
        raise ServingError(404, f"no such route: {request.method} /v1/{one_line(path)[:100]}", code="not_found")

    return _with_page(app, engine)


async def _run_now(function: Callable, *args: Any) -> Any:
    return function(*args)


def _with_page(app: FastAPI, engine: Engine) -> FastAPI:
    """Put the page at `/`, or a pointer to the API where Gradio is not installed."""
    if find_spec("gradio") is not None:
        from .page import mount_page

        return mount_page(app, engine)

    @app.get("/", include_in_schema=False)
    def pointer() -> dict[str, str]:
        return {"name": "audiox", "version": __version__, "documentation": "/docs", "api": "/v1"}

    return app


def _body_schema() -> dict[str, Any]:
    schema = AudioFields.model_json_schema(by_alias=False)
    form = json.loads(json.dumps(schema))
    for name in MEDIA:
        form["properties"][name] = {"type": "string", "format": "binary"}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"openapi_extra": {"requestBody": {"content": content, "required": True}}}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServingError)
    async def serving_error(request: Request, error: ServingError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        body = ServingError(error.status_code, one_line(error.detail), code="http_error").body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return JSONResponse(ServingError(422, f"{name}: {one_line(first['msg'])}", name, "invalid_value").body(), 422)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        message = "internal error; the server's log says more"
        return JSONResponse(ServingError(500, message, code="internal_error").body(), 500)


async def _events(job: Job, describe: Callable[[Job], dict[str, Any]]) -> AsyncIterator[str]:
    """Yield server-sent events: `progress` after each change, and the last state under its own name."""
    async with listening(job) as changed:
        while True:
            changed.clear()
            state = describe(job)
            name = state["status"] if state["status"] in FINISHED else "progress"
            yield f"event: {name}\ndata: {json.dumps(state)}\n\n"
            if name != "progress":
                return
            while not changed.is_set():
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT)
                except TimeoutError:
                    yield ": still here\n\n"
