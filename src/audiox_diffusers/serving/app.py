"""The server as a FastAPI application."""

from importlib.util import find_spec

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..messages import one_line
from ..version import __version__
from .engine import Engine
from .errors import ServingError, bad_field
from .fields import message_of
from .guard import Guard
from .routes.audio import audio_routes
from .routes.jobs import job_routes
from .routes.status import status_routes
from .service import Service

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]

DESCRIPTION = (
    "Generate and edit audio with AudioX. Send media as file parts of a form, or as base64 data URIs in JSON. The server"
    " never opens URLs or paths."
)


def create_app(engine: Engine, token: str | None = None, hosts: tuple[str, ...] = ()) -> FastAPI:
    """
    Create the API and the page of an engine.

    Args:
        engine (`Engine`): The engine. The caller starts and closes it.
        token (`str`, *optional*): Token that clients must send.
        hosts (`tuple[str, ...]`): Names by which clients may address a server without a token, besides those of the
            loopback interface.
    """
    app = FastAPI(title="audiox", version=__version__, description=DESCRIPTION)
    app.add_middleware(Guard, token=token, hosts=hosts, metrics=engine.metrics)
    service = Service(engine)
    for router in (audio_routes(service), job_routes(service), status_routes(engine)):
        app.include_router(router)
    _refuse_other_routes(app)
    _handle_errors(app)
    return _with_page(app, engine)


def _refuse_other_routes(app: FastAPI) -> None:
    """Answer other paths below `/v1` with an error. Otherwise the page would answer."""

    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    def unknown(path: str, request: Request) -> None:
        raise ServingError(404, f"no such route: {request.method} /v1/{one_line(path)[:100]}", code="not_found")


def _handle_errors(app: FastAPI) -> None:
    """Give all errors the same format."""

    @app.exception_handler(ServingError)
    async def serving_error(request: Request, error: ServingError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        body = ServingError(error.status_code, one_line(error.detail), code="http_error").body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        wrong = bad_field(str(first["loc"][-1]), message_of(first))
        return JSONResponse(wrong.body(), wrong.status)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        body = ServingError(500, "internal error; the server's log says more", code="internal_error").body()
        return JSONResponse(body, 500)


def _with_page(app: FastAPI, engine: Engine) -> FastAPI:
    """Put the page at `/`, or a pointer to the API if Gradio is not installed."""
    if find_spec("gradio") is not None:
        from .page import mount_page

        return mount_page(app, engine)

    @app.get("/", include_in_schema=False)
    def pointer() -> dict[str, str]:
        return {"name": "audiox", "version": __version__, "documentation": "/docs", "api": "/v1"}

    return app
