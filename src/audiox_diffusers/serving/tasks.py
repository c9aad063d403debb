"""A request with its files, checked and written for the engine."""

import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import remove
from ..generation.guidance import Guidance, GuidanceError
from ..generation.request import Request
from ..generation.sounds import Settings, check_files
from ..media import MediaBytes, load_audio, load_image, load_video
from ..messages import one_line, shortened
from ..option_types import MAX_SEED
from ..pipelines.requests import check_text
from .errors import bad_field
from .fields import FORMATS, MEDIA, AudioFields, decode_data_uri, parse_fields
from .jobs import Task
from .limits import Limits

if TYPE_CHECKING:
    from .engine import Engine

# Seeds that the server draws fit into every JSON reader.
DRAWN_SEEDS = 2**31


@dataclass(frozen=True)
class Body:
    """The fields and files of a request."""

    fields: AudioFields
    media: dict[str, MediaBytes]


def build_body(values: dict[str, Any], files: dict[str, MediaBytes]) -> Body:
    """Check all fields, and decode data URIs. `files` are the file parts by field."""
    fields = parse_fields({name: value for name, value in values.items() if name not in files})
    media = dict(files)
    for name in MEDIA:
        if (value := getattr(fields, name)) is not None:
            media[name] = decode_data_uri(name, value)
    return Body(fields, media)


def build_task(body: Body, engine: "Engine", most_sounds: int | None = None) -> Task:
    """
    Check a request and write its files to a new folder. This reads the beginning of each file, so it takes a while.

    Args:
        body (`Body`): The request.
        engine (`Engine`): The engine, for its models and limits.
        most_sounds (`int`, *optional*): Most sounds that the route returns.

    Raises:
        ServingError: A field or a file is wrong, or exceeds a limit.
    """
    fields, limits = body.fields, engine.limits
    model = engine.models.resolve(fields.model)
    adapters = engine.models.check_adapters(fields.lora or {})
    edit = _edit(fields)
    _check_values(fields, limits, most_sounds)
    _check_prompts(fields, body.media)
    _check_media(body.media, edit, fields.n, limits)
    values = {"prompt": fields.input, "negative_prompt": fields.negative_prompt, "length": fields.audio_length}
    if fields.response_format == "mp4" and "video" not in body.media:
        raise bad_field("response_format", "mp4 needs a video to take the picture from")

    guidance = Guidance(fields.guidance_scale, fields.guidance_rescale, fields.guidance_interval, fields.guider)
    settings = Settings(
        steps=fields.num_inference_steps,
        guidance=guidance,
        audio_padding="right",
        window_overlap=None,
        window_batch=4,
        normalize=fields.normalize,
        placement=engine.models.placement,
        model=model,
        metadata=fields.metadata,
        lora=adapters,
    )
    seed = secrets.randbelow(DRAWN_SEEDS) if fields.seed is None else fields.seed
    if seed + fields.n - 1 > MAX_SEED:
        raise bad_field("seed", f"the last seed must be below 2**64, got {seed} for the first of {fields.n}")
    suffix, _ = FORMATS[fields.response_format]
    folder = engine.new_folder()
    try:
        paths = {name: _write(folder / name, media) for name, media in body.media.items()}
        requests = [
            Request(output=folder / f"{number}{suffix}", seed=seed + number, **values, **paths)
            for number in range(fields.n)
        ]
        _check_guidance(guidance, requests[0])
        if fields.response_format == "mp4":
            _check_picture(requests[0])
        return Task(
            model=model,
            adapters=adapters,
            requests=requests,
            settings=settings,
            edit=edit,
            folder=folder,
            format=fields.response_format,
            preview_every=fields.preview_every,
            stream=fields.stream,
        )
    except BaseException:
        remove(folder)
        raise


def _write(path: Path, media: MediaBytes) -> Path:
    path.write_bytes(media.data)
    return path


def _check_picture(request: Request) -> None:
    """Copy the picture of a video once, so that one that does not fit into the result fails before sampling."""
    try:
        check_files(request)
    except (ValueError, OSError) as error:
        raise bad_field("video", one_line(error).replace(f"{request.output.parent}/", "")) from None


def _check_guidance(guidance: Guidance, request: Request) -> None:
    try:
        guidance.check()
        guidance.check_weights(request)
        guidance.check_negatives(request)
    except GuidanceError as error:
        raise bad_field("guidance_scale" if error.name == "guidance" else error.name, error.message) from None


def _edit(fields: AudioFields) -> dict[str, Any] | None:
    """Return the edits as arguments of the pipeline."""
    edit = {"inpaint_spans": fields.inpaint_spans, "extend_by_s": fields.extend_by, "strength": fields.strength}
    edit = {name: value for name, value in edit.items() if value is not None}
    if fields.extend_by is not None and len(edit) > 1:
        raise bad_field("extend_by", "does not go with inpaint_spans or strength")
    if fields.extend_by == 0:
        raise bad_field("extend_by", "must be a number of seconds other than 0")
    for name in ("audio_length", "normalize") if edit else ():
        if getattr(fields, name):
            raise bad_field(name, "does not go with inpaint_spans, extend_by or strength")
    if fields.stream and (edit or fields.normalize or fields.response_format not in ("wav", "pcm")):
        raise bad_field("stream", "works for wav and pcm, without normalize, inpaint_spans, extend_by and strength")
    for start, end in fields.inpaint_spans or []:
        if not 0 <= start < end:
            raise bad_field("inpaint_spans", f"each span needs 0 <= start < end, got {start:g}-{end:g}")
    return edit or None


def _check_values(fields: AudioFields, limits: Limits, most_sounds: int | None) -> None:
    if fields.audio_start != 0:
        raise bad_field("audio_start", f"must be 0, got {fields.audio_start:g}; cut the sound after it was generated")
    if fields.speed != 1:
        raise bad_field("speed", f"must be 1, got {fields.speed:g}; set audio_length for another duration")
    if (fields.num_inference_steps or 1) > limits.max_steps:
        raise bad_field("num_inference_steps", f"must be at most {limits.max_steps}, got {fields.num_inference_steps}")
    most = limits.max_sounds if most_sounds is None else most_sounds
    if fields.n > most:
        raise bad_field(
            "n",
            f"must be at most {most}, got {shortened(fields.n)}"
            + ("; use /v1/jobs for several sounds" if most == 1 else ""),
        )
    total = (fields.audio_length or 0) * fields.n
    if total > limits.max_length_s:
        together = f" for {fields.n} sounds together" if fields.n > 1 else ""
        raise bad_field("audio_length", f"must be at most {limits.max_length_s:g} s{together}, got {total:g} s")
    for name, text in (("input", fields.input), ("negative_prompt", fields.negative_prompt)):
        if len(text or "") > limits.max_prompt:
            raise bad_field(name, f"must have at most {limits.max_prompt} characters, got {len(text)}")
        try:
            check_text(name, text)
        except ValueError as error:
            raise bad_field(name, one_line(error)) from None


def _check_prompts(fields: AudioFields, media: dict[str, MediaBytes]) -> None:
    if not media.keys() & {"video", "image", "audio"} and not (fields.input or "").strip():
        what = "required" if fields.input is None else f"is blank, got {shortened(fields.input)}"
        raise bad_field("input", f"{what}; describe the sound, or give a video, an image or audio")
    if "video" in media and "image" in media:
        raise bad_field("image", "does not go with video; give one of them")


def _check_media(media: dict[str, MediaBytes], edit: dict[str, Any] | None, count: int, limits: Limits) -> None:
    """Read the beginning of each file, and all of a sound that `count` results are edits of."""
    if edit is not None and "audio" not in media:
        raise bad_field("audio", "required for inpaint_spans, extend_by and strength")
    for name, item in media.items():
        try:
            if name in ("video", "negative_video"):
                load_video(item, duration=0.1, max_pixels=limits.max_pixels)
            elif name == "image":
                load_image(item, max_pixels=limits.max_pixels)
            elif edit is None or name == "negative_audio":
                load_audio(item, duration=0.1, max_channels=8)
            else:
                waveform, rate = load_audio(item, max_duration=limits.max_length_s, max_channels=8)
                seconds = waveform.shape[1] / rate + math.fabs(edit.get("extend_by_s", 0))
                if seconds * count > limits.max_length_s:
                    raise bad_field(
                        "audio",
                        f"the results must have at most {limits.max_length_s:g} s together, got {seconds * count:g} s",
                    )
        except (ValueError, OSError) as error:
            raise bad_field(name, one_line(error).removeprefix(f"{name}: ")) from None
