"""Routes that answer with a sound."""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from .. import compatible
from ..fields import body_schema
from ..listening import until
from ..responses import read_sound
from ..service import Service


def audio_routes(service: Service) -> APIRouter:
    """Return the routes that generate one sound and answer with it."""
    router = APIRouter()

    @router.post("/v1/audio/generate", summary="Generate or edit a sound", openapi_extra=body_schema())
    async def generate(request: Request) -> Response:
        return await service.answer(request, await service.submit(request, most_sounds=1))

    @router.post("/v1/audio/speech", summary="Generate a sound, for clients of OpenAI's speech API")
    async def speech(request: Request) -> Response:
        return await service.answer(request, await service.submit_converted(request, compatible.from_speech))

    @router.post("/hf", summary="Generate a sound, for clients of Hugging Face endpoints")
    async def hugging_face(request: Request) -> Response:
        return await service.answer(request, await service.submit_converted(request, compatible.from_hugging_face))

    @router.post("/v1/chat/completions", summary="Generate a sound, for clients of vLLM-Omni's AudioX")
    async def chat(request: Request) -> Response:
        job = await service.submit_converted(request, compatible.from_chat)
        try:
            await until(request, job, lambda: job.is_finished)
            sound = await read_sound(service.sound(job, 0))
        finally:
            service.engine.remove(job)
        return JSONResponse(await run_in_threadpool(compatible.to_chat, job, sound))

    return router
