"""Requests of other servers' clients, as fields of this one."""

import time
from base64 import b64encode
from typing import Any

from .errors import bad_field, unknown_field
from .jobs import Job

# Fields that OpenAI's clients send, and that have no meaning for sounds other than speech.
IGNORED_OF_SPEECH = ("voice", "instructions")
# Parameters of vLLM-Omni's chat requests for AudioX: our names.
CHAT_FIELDS = {
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "cfg_rescale": "guidance_rescale",
    "seed": "seed",
    "negative_prompt": "negative_prompt",
    "seconds_total": "audio_length",
}
CHAT_TASKS = ("t2a", "t2m", "v2a", "v2m", "tv2a", "tv2m")
CHAT_MEDIA = {"video_url": "video", "audio_url": "audio", "image_url": "image"}
CHAT_FORMATS = {"wav": "wav", "pcm16": "pcm", "flac": "flac", "mp3": "mp3", "opus": "opus"}


def from_speech(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an OpenAI request for speech. Its default format is MP3."""
    kept = {name: value for name, value in values.items() if name not in IGNORED_OF_SPEECH}
    return {"response_format": "mp3", **kept}


def from_hugging_face(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a payload with `inputs` and `parameters`. `duration` is the length in seconds."""
    known = ("inputs", "parameters", "model")
    for name in values:
        if name not in known:
            raise unknown_field(name, known)
    parameters = values.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise bad_field("parameters", "must be an object")
    fields = {"audio_length" if name == "duration" else name: value for name, value in parameters.items()}
    given = {"input": values.get("inputs"), "model": values.get("model")}
    return {**fields, **{name: value for name, value in given.items() if value is not None}}


def from_chat(values: dict[str, Any]) -> dict[str, Any]:
    """
    Return the fields of a chat request for AudioX, as vLLM-Omni takes it.

    All text becomes the prompt, and the first item of each medium is used. The parameters are at the top level or in
    `extra_body`.
    """
    extra = values.get("extra_body") or {}
    if not isinstance(extra, dict):
        raise bad_field("extra_body", "must be an object")
    given = {**values, **extra}
    fields: dict[str, Any] = {name: given[old] for old, name in CHAT_FIELDS.items() if given.get(old) is not None}
    for name in ("video_path", "audio_path"):
        if given.get(name) is not None:
            raise bad_field(name, "paths of the server are never opened; send a data URI in messages")
    if given.get("seconds_start", 0) != 0:
        raise bad_field("seconds_start", "only 0 is supported")
    if given.get("num_outputs_per_prompt", 1) != 1:
        raise bad_field("num_outputs_per_prompt", "must be 1; use /v1/jobs for several sounds")
    task = given.get("audiox_task")
    if task is not None and task not in CHAT_TASKS:
        raise bad_field("audiox_task", f"must be one of {', '.join(CHAT_TASKS)}")
    texts, media = _read_messages(values.get("messages"))
    if task is not None and task.startswith("v"):
        texts = []
    if task is not None and "v" in task.partition("2")[0] and "video" not in media:
        raise bad_field("messages", f"the task {task} needs a video")
    if texts:
        fields["input"] = " ".join(texts)
    if values.get("model") is not None:
        fields["model"] = values["model"]
    audio = values.get("audio") or {}
    name = audio.get("format", "wav") if isinstance(audio, dict) else None
    if name not in CHAT_FORMATS:
        raise bad_field("audio.format", f"must be one of {', '.join(CHAT_FORMATS)}")
    return {**fields, **media, "response_format": CHAT_FORMATS[name]}


def _read_messages(messages: Any) -> tuple[list[str], dict[str, str]]:
    """Return the texts and the first data URI of each medium."""
    texts: list[str] = []
    media: dict[str, str] = {}
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "must be a list with at least one message")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise bad_field("messages", "the content must be text, or a list of objects")
        for item in items:
            kind = item.get("type")
            value = item.get(kind) if isinstance(kind, str) else None
            if kind in CHAT_MEDIA:
                value = value.get("url") if isinstance(value, dict) else value
            if not isinstance(value, str) or (kind != "text" and kind not in CHAT_MEDIA):
                raise bad_field("messages", f"an item must be text, {', '.join(CHAT_MEDIA)}")
            if kind == "text":
                texts.append(value)
            else:
                media.setdefault(CHAT_MEDIA[kind], value)
    return texts, media


def to_chat(job: Job, sound: bytes) -> dict[str, Any]:
    """Return the chat completion that holds a sound."""
    now = int(time.time())
    audio = {"id": job.id, "data": b64encode(sound).decode(), "expires_at": now + 24 * 3600, "transcript": ""}
    message = {"role": "assistant", "content": None, "audio": audio}
    return {
        "id": f"chatcmpl-{job.id}",
        "object": "chat.completion",
        "created": now,
        "model": job.task.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
