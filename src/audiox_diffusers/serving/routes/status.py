"""Routes for the models and the state of the server."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from ..engine import Engine
from ..errors import ServingError


def status_routes(engine: Engine) -> APIRouter:
    """Return the routes that describe models, health and metrics."""
    router = APIRouter()

    @router.get("/v1/models", summary="List the models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": engine.models.describe()}

    @router.get("/v1/models/{name:path}", summary="Describe a model")
    def model(name: str) -> dict[str, Any]:
        engine.models.resolve(name)
        return next(item for item in engine.models.describe() if item["id"] == name)

    @router.get("/health", summary="Check that the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="Check that the first model is loaded")
    async def ready() -> dict[str, str]:
        if not engine.ready:
            raise ServingError(503, "the first model is not loaded yet", code="not_ready", retry_after_s=1)
        return {"status": "ready"}

    @router.get("/metrics", summary="Return metrics in the format of Prometheus")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(engine.describe_metrics(), media_type="text/plain; version=0.0.4")

    return router
