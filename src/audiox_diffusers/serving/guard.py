"""Checks of each request before any route sees it."""

import binascii
import hmac
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from ..messages import shortened
from .errors import ServingError
from .metrics import Metrics

# Routes for load balancers, which send no token.
OPEN = ("/health", "/ready")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Guard:
    """
    ASGI middleware that checks the token and the origin, and counts requests.

    Programs send the token as `Authorization: Bearer TOKEN`. Browsers ask for a password, which is the token.

    Pages of other sites can make a browser send requests to this server, even with its password, and even if only this
    machine can reach the server. Their `Origin` gives them away, and on a server without a token also their `Host`.

    Args:
        app (`Callable`): The application.
        token (`str`, *optional*): The token.
        hosts (`tuple[str, ...]`): Names of a server without a token, besides those of the loopback interface.
        metrics (`Metrics`): Metrics that count the requests.
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
                self.metrics.requests.labels(route, str(message["status"])).inc()
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
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is not None:
            scheme, given = _credentials(headers.get("authorization", ""))
            # The duration of this comparison does not reveal how much of the token is right.
            if not hmac.compare_digest(given, self.token.encode()):
                is_browser = "text/html" in headers.get("accept", "")
                raise ServingError(
                    401,
                    "send the server's token as Authorization: Bearer TOKEN",
                    code="invalid_api_key",
                    challenge='Basic realm="audiox: the password is the token"' if is_browser else "Bearer",
                )
            if scheme == "bearer":
                return
        elif urlsplit(f"//{host}").hostname not in (*LOOPBACK, *self.hosts):
            raise ServingError(
                403, f"Host must be this server's own address, got {shortened(host)}", code="wrong_host"
            )
        if origin is not None and urlsplit(origin).netloc != host:
            raise ServingError(403, "requests from pages of other sites are refused", code="wrong_origin")


def _credentials(header: str) -> tuple[str, bytes]:
    """Return the scheme of an `Authorization` header, in lower case, and the token or password."""
    scheme, _, value = header.partition(" ")
    scheme, value = scheme.lower(), value.strip()
    if scheme == "bearer":
        return scheme, value.encode()
    if scheme == "basic":
        try:
            return scheme, b64decode(value).partition(b":")[2]
        except binascii.Error:
            pass
    return scheme, b""
