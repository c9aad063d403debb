"""Checks of each request before any route sees it."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from .errors import ServingError
from .metrics import Metrics

# Routes that load balancers ask, which carry no secret.
OPEN = ("/health", "/ready")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Guard:
    """
    ASGI middleware: check the token, or the origin where there is none, and count requests.

    Without a token only this machine can reach the server. Web pages that a browser on this machine shows can too, so
    requests for another host name, and requests that come from a page of another origin, are refused.

    Args:
        app (`Callable`): The application.
        token (`str`, *optional*): Token that clients send as `Authorization: Bearer TOKEN`.
        hosts (`tuple[str, ...]`): Names by which clients may address a server without a token.
        metrics (`Metrics`): Where to count.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], token: str | None, hosts: tuple[str, ...], metrics: Metrics
    ):
        self.app, self.token, self.hosts, self.metrics = app, token, hosts, metrics

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = f"req-{uuid4().hex}"

        async def counted(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Request-Id", request_id)
                route = getattr(scope.get("route"), "path", None) or "other"
                self.metrics.add("requests_total", route=route, status=str(message["status"]))
            await send(message)

        try:
            self._check(scope)
        except ServingError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            response = JSONResponse(error.body(), error.status, error.headers())
            await response(scope, receive, counted)
            return
        await self.app(scope, receive, counted)

    def _check(self, scope: dict[str, Any]) -> None:
        if scope["path"] in OPEN:
            return
        headers = Headers(scope=scope)
        if self.token is not None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            # Compared as bytes, in a time that does not depend on how much of it is right.
            right = hmac.compare_digest(token.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not right:
                raise ServingError(
                    401, "send the server's token as Authorization: Bearer TOKEN", code="invalid_api_key"
                )
            return
        host = headers.get("host", "")
        if urlsplit(f"//{host}").hostname not in (*LOOPBACK, *self.hosts):
            raise ServingError(403, "a server without a token answers only to its own address", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ServingError(403, "requests from pages of another origin are refused", code="wrong_origin")
