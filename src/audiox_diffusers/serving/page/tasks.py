"""Tasks of the page, and how the input of a visitor becomes a request."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ...media import MediaBytes
from ..errors import bad_field

AS_GENERATED, PEAK, LUFS = "As generated", "Peak 1.0", "Loudness"


class Task(StrEnum):
    """Tasks of the page, by their labels."""

    TEXT = "Text"
    VIDEO = "Video"
    IMAGE = "Picture"
    MIX = "Mix"
    INPAINT = "Inpaint"
    EXTEND = "Extend"
    VARY = "Vary"


# task: (media that it takes, hint)
TASKS: dict[Task, tuple[tuple[str, ...], str]] = {
    Task.TEXT: ((), "Describe a sound."),
    Task.VIDEO: (("video",), "Add sound to a video. A description is optional."),
    Task.IMAGE: (("image",), "Generate the sound of a picture. A description is optional."),
    Task.MIX: (("video", "image", "audio"), "Combine a description, a video or a picture, and a sound to continue."),
    Task.INPAINT: (("audio",), "Regenerate parts of a sound: drag over its spectrogram, or type the seconds."),
    Task.EXTEND: (("audio",), "Make a sound longer."),
    Task.VARY: (("audio",), "Generate a variation of a sound."),
}
# Media to avoid, for every task.
NEGATIVES = ("negative_video", "negative_audio")
# field of a request: (its label, the part of the page that shows its errors)
FIELDS = {
    "input": ("Prompt", "prompt"),
    "video": ("Video", "media"),
    "image": ("Picture", "media"),
    "audio": ("Sound", "media"),
    "inpaint_spans": ("Seconds to regenerate", "edit"),
    "extend_by": ("Seconds to add", "edit"),
    "strength": ("Strength", "edit"),
    "audio_length": ("Length", "settings"),
    "num_inference_steps": ("Steps", "settings"),
    "guidance_scale": ("Guidance", "settings"),
    "guidance_rescale": ("Guidance rescale", "settings"),
    "guidance_interval": ("Guidance interval", "settings"),
    "guider": ("Guider", "settings"),
    "negative_prompt": ("Negative prompt", "settings"),
    "negative_video": ("Video to avoid", "settings"),
    "negative_audio": ("Sound to avoid", "settings"),
    "seed": ("Seed", "settings"),
    "n": ("Number of sounds", "settings"),
    "normalize": ("Level", "settings"),
    "loudness": ("Loudness", "settings"),
    "model": ("Model", "settings"),
    "lora": ("LoRA", "settings"),
}


@dataclass(frozen=True)
class Form:
    """Input of a visitor. Empty fields are `None` or empty."""

    task: str
    prompt: str | None
    video: str | None
    image: str | None
    audio: str | None
    spans: str | None
    extend: float | None
    strength: float | None
    length: float | None
    steps: float | None
    guidance: float | None
    seed: float | None
    number: float | None
    negative_prompt: str | None
    negative_video: str | None
    negative_audio: str | None
    text_weight: float | None
    video_weight: float | None
    audio_weight: float | None
    guidance_interval: str | None
    guidance_rescale: float | None
    guider: str | None
    level: str
    loudness: float | None
    model: str
    lora: str | None
    lora_scale: float | None

    @property
    def media(self) -> dict[str, Path]:
        """Uploaded files that the task takes."""
        names, _ = TASKS[Task(self.task)]
        return self._paths(names)

    @property
    def files(self) -> dict[str, Path]:
        """Uploaded files that the task takes, and those to avoid."""
        return {**self.media, **self._paths(NEGATIVES)}

    def _paths(self, names: tuple[str, ...]) -> dict[str, Path]:
        return {name: Path(path) for name in names if (path := getattr(self, name))}

    @property
    def weights(self) -> dict[str, float]:
        """Guidance weights by kind of prompt. They replace the guidance scale."""
        given = {"text": self.text_weight, "video": self.video_weight, "audio": self.audio_weight}
        return {kind: weight for kind, weight in given.items() if weight is not None}

    @property
    def is_edit(self) -> bool:
        return self.task in (Task.INPAINT, Task.EXTEND, Task.VARY)

    def request(self) -> tuple[dict[str, Any], dict[str, MediaBytes]]:
        """
        Return fields and files as `Engine.submit` takes them.

        Raises:
            ServingError: Something is missing.
        """
        self._check(self.media)
        values = {
            "input": self.prompt or None,
            "negative_prompt": self.negative_prompt or None,
            "model": self.model,
            "num_inference_steps": _whole(self.steps) or None,
            "guidance_scale": self.weights or self.guidance,
            "guidance_rescale": self.guidance_rescale,
            "guidance_interval": _ranges(self.guidance_interval),
            "guider": self.guider or None,
            "seed": _whole(self.seed),
            "n": _whole(self.number),
            "normalize": self.level == PEAK,
            "lora": {self.lora: 1.0 if self.lora_scale is None else self.lora_scale} if self.lora else None,
            "audio_length": None if self.is_edit else self.length or None,
            "inpaint_spans": _ranges(self.spans) if self.task == Task.INPAINT else None,
            "extend_by": self.extend if self.task == Task.EXTEND else None,
            "strength": self.strength if self.task == Task.VARY else None,
        }
        files = {name: MediaBytes(path.read_bytes(), path.name) for name, path in self.files.items()}
        return {name: value for name, value in values.items() if value is not None}, files

    def _check(self, media: dict[str, Path]) -> None:
        if self.task == Task.TEXT and not self.prompt:
            raise bad_field("input", "describe the sound")
        if self.task in (Task.VIDEO, Task.IMAGE) and not media:
            name = "video" if self.task == Task.VIDEO else "image"
            raise bad_field(name, "choose a file")
        if self.task == Task.MIX and not media and not self.prompt:
            raise bad_field("input", "describe the sound, or choose a file")
        if self.is_edit and not media:
            raise bad_field("audio", "choose a sound to edit")
        if self.task == Task.INPAINT and not self.spans:
            raise bad_field("inpaint_spans", "give at least one span, such as 1.5-2.5")
        if self.task == Task.EXTEND and not self.extend:
            raise bad_field("extend_by", "must be a number of seconds other than 0")
        if self.task == Task.VARY and not self.strength:
            raise bad_field("strength", "must be above 0 and at most 1")
        if self.level == LUFS and self.loudness is None:
            raise bad_field("loudness", "give a loudness in LUFS, such as -16")


def place_of(param: str | None, message: str) -> tuple[str, str]:
    """Return the part of the page that an error belongs to, and what it shows there."""
    if param in FIELDS:
        label, place = FIELDS[param]
        return place, f"{label}: {message.removeprefix(f'{param}: ')}"
    return "status", message


def _ranges(text: str | None) -> str | None:
    """Return spans or an interval as the API takes them. People put spaces around the dash, and type longer dashes."""
    return None if not text else re.sub(r"\s*[-\u2013\u2014]\s*", "-", text.strip().rstrip(","))


def _whole(value: float | None) -> int | float | None:
    return int(value) if value is not None and value == int(value) else value
