"""Read the bodies of requests, within limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..media import MediaBytes
from ..messages import one_line, shortened
from .errors import ServingError, bad_field, unknown_field
from .fields import MEDIA, NAMES, parse_json
from .limits import Limits

MAX_FIELDS = 64
MAX_FIELD_BYTES = 2**20
# Larger JSON is parsed in another thread, in bytes.
SHORT = 2**16
# Seconds for which the rest of an oversized body is read.
DRAIN_S = 10.0


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        ServingError: The body is too large (413), too slow (408), or not a JSON object (400, 415).
    """
    _check_type(request, "application/json")
    return await _in_time(_read_json(request, limits), limits)


async def read_values(request: Request, limits: Limits) -> tuple[dict[str, Any], dict[str, MediaBytes]]:
    """
    Read JSON or multipart form data.

    Returns:
        `tuple`: The values of the fields, and the files by field.

    Raises:
        ServingError: As `read_json`; or a field is given twice, or takes no file (400).
    """
    if _check_type(request, "application/json", "multipart/form-data") == "application/json":
        return await read_json(request, limits), {}
    return await _in_time(_read_form(request, limits), limits)


def _check_type(request: Request, *allowed: str) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in allowed:
        raise ServingError(
            415, f"Content-Type must be {' or '.join(allowed)}, got {shortened(kind)}", code="unsupported_media_type"
        )
    return kind


async def _in_time(reading: Any, limits: Limits) -> Any:
    try:
        async with asyncio.timeout(limits.upload_timeout_s):
            return await reading
    except TimeoutError:
        raise ServingError(
            408, f"the upload took more than {limits.upload_timeout_s:g} s", code="upload_timeout"
        ) from None
    except ClientDisconnect:
        raise ServingError(400, "the client disconnected", code="disconnected") from None


async def _chunks(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the body piece by piece. Raise status 413 as soon as its size exceeds the limit, declared or received."""
    declared = request.headers.get("content-length", "")
    declared_size = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
    size, stream = 0, request.stream()
    if declared_size <= limits.max_upload_bytes:
        async for chunk in stream:
            size += len(chunk)
            if size > limits.max_upload_bytes:
                break
            yield chunk
        else:
            return
    if request.headers.get("expect", "").lower() != "100-continue":
        await _drain(stream)
    most = limits.max_upload_bytes / 2**20
    raise ServingError(413, f"the request must have at most {most:g} MB", code="upload_too_large")


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read the rest of a body for some seconds. Most clients read the response only when they have sent everything."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in stream:
                pass


async def _read_json(request: Request, limits: Limits) -> dict[str, Any]:
    body = b"".join([chunk async for chunk in _chunks(request, limits)])
    try:
        values = parse_json(body) if len(body) < SHORT else await run_in_threadpool(parse_json, body)
    except ValueError as error:
        raise ServingError(400, f"the body is not valid JSON: {one_line(error)}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ServingError(400, f"the body must be a JSON object, got {type(values).__name__}", code="invalid_json")
    return values


async def _read_form(request: Request, limits: Limits) -> tuple[dict[str, Any], dict[str, MediaBytes]]:
    parser = MultiPartParser(
        request.headers,
        _chunks(request, limits),
        max_files=len(MEDIA),
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ServingError(400, f"the form is not valid: {one_line(error.message)}", code="invalid_form") from None
    except (KeyError, ValueError, AssertionError) as error:
        raise ServingError(400, f"the form is not valid: {one_line(error)}", code="invalid_form") from None
    values: dict[str, Any] = {}
    files: dict[str, MediaBytes] = {}
    try:
        for name, value in form.multi_items():
            if name in values or name in files:
                raise bad_field(one_line(name)[:100], "given twice")
            if not isinstance(value, UploadFile):
                values[name] = value
            elif name not in NAMES:
                raise unknown_field(name, NAMES)
            elif name not in MEDIA:
                raise bad_field(one_line(name)[:100], f"takes no file; only {', '.join(MEDIA)} do")
            else:
                # The name of the upload is never used.
                files[name] = MediaBytes(await value.read(), name)
    finally:
        await form.close()
    return values, files
