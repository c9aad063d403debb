"""Errors that clients see, in the format of OpenAI."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ..messages import one_line

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ServingError(Exception):
    """
    An error for a client.

    Args:
        status (`int`): HTTP status.
        message (`str`): What is wrong.
        param (`str`, *optional*): Field that is wrong.
        code (`str`, *optional*): Short name for programs.
        retry_after_s (`int`, *optional*): Seconds to wait before another attempt.
        challenge (`str`, *optional*): Scheme of the credentials that are missing, for status 401.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        challenge: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s, self.challenge = retry_after_s, challenge

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        headers = {"Retry-After": self.retry_after_s, "WWW-Authenticate": self.challenge}
        return {name: str(value) for name, value in headers.items() if value is not None}


def bad_field(param: str, message: str) -> ServingError:
    """Return the error for a field with a wrong value."""
    return ServingError(400, f"{param}: {message}", param=param, code="invalid_value")


def unknown_field(name: str, known: Iterable[str]) -> ServingError:
    """Return the error for a field that does not exist, with the name that was probably meant."""
    name = one_line(name)[:100]
    similar = get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return ServingError(400, f"{name}: unknown field{hint}", param=name, code="unknown_field")
