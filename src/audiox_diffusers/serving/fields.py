"""The fields of a request, each checked alone."""

import json
from argparse import ArgumentTypeError
from base64 import b64decode
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)

from ..media import MediaBytes
from ..messages import one_line, shortened
from ..option_types import MAX_SEED, guidance, guider, interval, span
from ..pipelines.checks import MAX_GUIDANCE, MAX_STEPS
from ..pipelines.requests import FILE_KEYS
from .errors import bad_field, unknown_field

MEDIA = FILE_KEYS
# response format: extension of the file that is written, media type of the response
FORMATS = {
    "wav": (".wav", "audio/wav"),
    "pcm": (".wav", "audio/pcm"),
    "flac": (".flac", "audio/flac"),
    "mp3": (".mp3", "audio/mpeg"),
    "aac": (".m4a", "audio/aac"),
    "opus": (".opus", "audio/ogg"),
    "mp4": (".mp4", "video/mp4"),
}


# Messages for pydantic's errors. pydantic's own follow for all other errors.
MESSAGES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "extra_forbidden": "is given under two names",
    "dict_type": "must be a name, or names with scales",
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "too_long", "missing"), "must be a list of pairs of start and end"),
}


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


def _seed(value: int | None) -> int | None:
    # pydantic rounds a limit as large as this.
    if value is not None and value > MAX_SEED:
        raise ValueError(f"must be at most {MAX_SEED}, got {shortened(value)}")
    return value


def _from_json(value: Any) -> Any:
    """Form fields are text, so lists and objects come as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_json(value)
    return value


def _spans(value: Any) -> Any:
    value = _from_json(value)
    if isinstance(value, str):
        return [_parse(span, item.strip()) for item in value.split(",")]
    return value


def _scales(value: Any) -> Any:
    value = _from_json(value)
    return {value: 1.0} if isinstance(value, str) else value


def _guidance(value: Any) -> float | dict[str, float]:
    value = _from_json(value)
    if isinstance(value, dict):
        value = ",".join(f"{name}={weight}" for name, weight in value.items())
    return _parse(guidance(-MAX_GUIDANCE, MAX_GUIDANCE), str(value))


def _interval(value: Any) -> tuple[float, float]:
    value = _from_json(value)
    if isinstance(value, list):
        value = "-".join(map(str, value))
    return _parse(interval, str(value))


def _parse(parse: Callable[[str], Any], text: str) -> Any:
    """Parse a text as the command line does."""
    try:
        return parse(text)
    except ArgumentTypeError as error:
        raise ValueError(str(error)) from None


Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_number)]


class AudioFields(BaseModel):
    """The body of a request for audio."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False)

    input: str | None = Field(
        None, validation_alias=AliasChoices("input", "prompt"), description="Text that describes the sound."
    )
    model: str | None = Field(None, description="Name from `/v1/models`. Defaults to the first one.")
    negative_prompt: str | None = Field(None, description="Text that describes what to avoid.")
    video: str | None = Field(None, description="Video: a file part, or a base64 data URI.")
    image: str | None = Field(None, description="Picture: a file part, or a base64 data URI.")
    audio: str | None = Field(None, description="Sound to continue or edit: a file part, or a base64 data URI.")
    negative_video: str | None = Field(None, description="Video of what to avoid: a file part, or a base64 data URI.")
    negative_audio: str | None = Field(None, description="Sound to avoid: a file part, or a base64 data URI.")
    audio_length: Real | None = Field(
        None, gt=0, validation_alias=AliasChoices("audio_length", "seconds"), description="Duration in seconds."
    )
    audio_start: Real = Field(0.0, description="Only 0.")
    speed: Real = Field(1.0, description="Only 1.")
    num_inference_steps: Whole | None = Field(
        None, ge=1, le=MAX_STEPS, description="Denoising steps. Defaults to the model's own."
    )
    guidance_scale: Annotated[
        Any, PlainValidator(_guidance, json_schema_input_type=float | dict[str, float] | str | None)
    ] = Field(
        None,
        description="Guidance scale; 1 turns guidance off. An object or text such as text=3,video=7 weights each kind of"
        " prompt on its own. Defaults to the model's own.",
    )
    guidance_rescale: Real = Field(
        0.0,
        ge=0,
        le=1,
        description="How much to rescale guided predictions, 0 to 1, against distortion by high guidance.",
    )
    guidance_interval: Annotated[
        Any, PlainValidator(_interval, json_schema_input_type=tuple[float, float] | str | None)
    ] = Field(None, description="Times between which guidance is on, such as 0.2-0.8, from 0 (clean) to 1 (noise).")
    guider: Annotated[str | None, BeforeValidator(lambda value: _parse(guider, str(value)))] = Field(
        None, description="apg or cfg-zero-star instead of plain guidance, with options as in apg:eta=0.5."
    )
    seed: Annotated[Whole | None, AfterValidator(_seed)] = Field(
        None, ge=0, description="Seed of the first sound. Defaults to a new one."
    )
    n: Whole = Field(1, ge=1, description="Number of sounds. More than 1 only for jobs.")
    inpaint_spans: Annotated[list[tuple[Real, Real]] | None, BeforeValidator(_spans)] = Field(
        None, description="Spans of `audio` to regenerate: pairs of start and end in seconds, or text like 2.5-7.5."
    )
    extend_by: Real | None = Field(
        None, description="Seconds to add to the end of `audio`, or to its start if negative."
    )
    strength: Real | None = Field(
        None, gt=0, le=1, description="How much to change `audio`; without `inpaint_spans` all of it is varied."
    )
    lora: Annotated[dict[str, Real] | None, BeforeValidator(_scales)] = Field(
        None, description="Name of a LoRA adapter, or names with scales."
    )
    normalize: bool = Field(False, description="Scale each sound to a peak of 1.0.")
    metadata: bool = Field(True, description="Write prompt, model, seed and settings to the metadata of the file.")
    preview_every: Whole | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Denoising steps between previews of the first sound. Only useful for jobs.",
    )
    response_format: Literal["wav", "pcm", "flac", "mp3", "aac", "opus", "mp4"] = Field(
        "wav", description="Format; mp4 is the video with its new sound."
    )
    stream: bool = Field(
        False, description="Send the sound while it is decoded; for wav and pcm, and not for jobs or edits."
    )
    stream_format: Literal["audio"] = Field("audio", description="Only audio.")


def body_schema() -> dict[str, Any]:
    """Return the OpenAPI description of a request's body, as JSON and as a form."""
    schema = AudioFields.model_json_schema(by_alias=False)
    files = {name: {"type": "string", "format": "binary"} for name in MEDIA}
    form = {**schema, "properties": {**schema["properties"], **files}}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"content": content, "required": True}}


# All names of fields in requests.
NAMES = {*AudioFields.model_fields, "prompt", "seconds"}


def parse_fields(values: dict[str, Any]) -> AudioFields:
    """
    Check the fields of a body, each alone.

    Raises:
        ServingError: A field is unknown or has a wrong value (400).
    """
    for name in values:
        if name not in NAMES:
            raise unknown_field(name, NAMES)
    try:
        # Clients send null for what they leave to the server.
        return AudioFields.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise bad_field(name, message_of(first)) from None


def message_of(error: Any) -> str:
    """Return the message for an error of pydantic. Those of our own validators are complete."""
    if error["type"] == "value_error":
        return one_line(error["msg"].removeprefix("Value error, "))
    template = MESSAGES.get(error["type"])
    message = error["msg"] if template is None else template.format(**error.get("ctx", {}))
    return one_line(f"{message}, got {shortened(error['input'])}")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Unlike Python's own parser, refuse NaN and infinity, and never raise but `ValueError`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def decode_data_uri(name: str, value: str) -> MediaBytes:
    """
    Return the contents of a base64 data URI.

    Raises:
        ServingError: It is something else (400). URLs and paths are never opened.
    """
    if not value.startswith("data:"):
        raise bad_field(
            name,
            f"must be a file part or a data URI such as data:audio/wav;base64,..., got {shortened(value)}. URLs and"
            " paths are never opened",
        )
    head, comma, data = value.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError
        contents = b64decode(unquote_to_bytes(data), validate=True)
    except ValueError:
        raise bad_field(name, "the data URI is not valid base64") from None
    return MediaBytes(contents, name)
