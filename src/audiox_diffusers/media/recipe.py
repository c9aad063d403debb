"""Recipes: how a sound was generated, as metadata of its file."""

import json
import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import one_line, shortened
from ..option_types import MAX_SEED, MODALITIES, guider
from ..version import __version__
from .files import MediaError, MediaSource

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

# Key of the version in the JSON text. Comments without it belong to other programs.
MARK = "audiox_diffusers"
# Longest JSON text in bytes. QuickTime stores the length of a text in 16 bits.
MAX_BYTES = 60_000
MAX_TITLE = 100
MAX_NAME = 255
# Range of steps, guidance scales and seconds of a recipe.
MAX_COUNT, MAX_NUMBER = 10_000, 1e9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """
    How a sound was generated. `save_audio` and `save_video` write it to the metadata of a file.

    Files that were given as input are recorded by name only. So a recipe holds no private paths, and whoever uses it
    has to supply those files.

    Args:
        model (`str`): Name or Hub id of the model; only the name of a local folder.
        seed (`int`): Seed of the sound.
        prompt, negative_prompt (`str`, *optional*): The prompts.
        video, image, audio, negative_video, negative_audio (`str`, *optional*): Names of the input files.
        length (`float`, *optional*): Duration in seconds. `None` for an edit.
        inpaint (`tuple[tuple[float, float], ...]`): Regenerated spans in seconds.
        extend (`float`, *optional*): Added seconds; negative at the start.
        strength (`float`, *optional*): How much an edit changes.
        crossfade (`float`, *optional*): Crossfade of an edit in milliseconds.
        steps (`int`, *optional*): Number of denoising steps.
        guidance, guidance_rescale (`float`, *optional*): Guidance scale and its rescaling.
        guidance_weights (`tuple[tuple[str, float], ...]`): Guidance weights by modality, which replace the scale.
        guidance_interval (`tuple[tuple[float, float], ...]`): Times between which guidance was on; empty for always.
        guider (`str`, *optional*): Guider that replaces plain guidance, as for `--guider` of the command line.
        audio_padding (`str`, *optional*): Side on which a short audio prompt is padded.
        window_overlap (`float`, *optional*): Overlap of windows in seconds.
        window_batch (`int`, *optional*): Number of windows that are denoised at once.
        normalize (`bool`): Whether the sound is scaled to a peak of 1.0.
        dtype (`str`, *optional*): Precision of the networks, as for `--dtype` of the command line.
        lora (`tuple[tuple[str, float], ...]`): Names and scales of LoRA adapters.
        loudness (`float`, *optional*): Loudness in LUFS that the sound was set to afterwards.
        version (`str`): Version of this package.
    """

    model: str
    seed: int
    prompt: str | None = None
    negative_prompt: str | None = None
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    negative_video: str | None = None
    negative_audio: str | None = None
    length: float | None = None
    inpaint: tuple[tuple[float, float], ...] = ()
    extend: float | None = None
    strength: float | None = None
    crossfade: float | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_weights: tuple[tuple[str, float], ...] = ()
    guidance_interval: tuple[tuple[float, float], ...] = ()
    guider: str | None = None
    audio_padding: str | None = None
    window_overlap: float | None = None
    window_batch: int | None = None
    normalize: bool = False
    dtype: str | None = None
    lora: tuple[tuple[str, float], ...] = ()
    loudness: float | None = None
    version: str = __version__

    @property
    def is_edit(self) -> bool:
        """Whether the sound is an edit of `audio`."""
        return bool(self.inpaint) or self.extend is not None or self.strength is not None

    @property
    def inputs(self) -> dict[str, str]:
        """Names of the input files, by argument."""
        names = ("video", "image", "audio", "negative_video", "negative_audio")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def title(self) -> str:
        """A title for players: the prompt, or the names of the input files without the negative ones."""
        names = [value for name, value in self.inputs.items() if not name.startswith("negative")]
        title = one_line(self.prompt or ", ".join(names))
        return title if len(title) <= MAX_TITLE else f"{title[:MAX_TITLE]}..."

    def settings(self) -> dict[str, Any]:
        """Return all values but the version that are given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)[:-1]}
        return {name: value for name, value in values.items() if value not in (None, ()) and value is not False}

    def to_json(self) -> str:
        """Return the recipe as JSON on one line, in ASCII."""
        return json.dumps({MARK: self.version, **self.settings()})

    @classmethod
    def from_json(cls, text: str) -> "Recipe | None":
        """
        Read a recipe from JSON text, which can come from anyone: every value is checked.

        Returns:
            `Recipe`, *optional*: The recipe; `None` if the text is not one.

        Raises:
            ValueError: The text is a recipe with a wrong value, or too long.
        """
        if MARK not in text:
            return None
        if len(text) > MAX_BYTES:
            raise ValueError(f"the recipe has {len(text)} characters, more than {MAX_BYTES}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("the recipe is not valid JSON") from None
        if not isinstance(values, dict) or MARK not in values:
            return None
        values["version"] = values.pop(MARK)
        known = {name: value for name, value in values.items() if name in CHECKS and value is not None}
        for name, value in known.items():
            try:
                known[name] = CHECKS[name](value)
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"the recipe has a wrong {name}: {shortened(value)}") from None
        if missing := {"model", "seed"} - known.keys():
            raise ValueError(f"the recipe has no {' and no '.join(sorted(missing))}")
        return cls(**known)


def input_name(path: str | os.PathLike) -> str:
    """Return the name of an input file, and "-" for a pipe, which is supplied on standard input."""
    return file_name(path) if os.path.isfile(path) else "-"


def file_name(path: str | os.PathLike) -> str:
    """Return the name of a file without its folders, which may be private."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2]


def model_name(model: str) -> str:
    """Return the name of a local folder or file, and other names unchanged."""
    path = Path(model)
    return path.resolve().name if path.exists() or path.is_absolute() else model


def write_recipe(target: "OutputContainer", recipe: Recipe) -> bool:
    """Add a recipe to the metadata of a new file. Return `False` if it is too long."""
    text = recipe.to_json()
    if len(text) > MAX_BYTES:
        return False
    target.metadata.update({"title": recipe.title, "comment": text})
    return True


def recipe_of(container: "InputContainer") -> Recipe | None:
    """Return the recipe in the metadata of an open file, `None` if it has none. `ValueError` if it is damaged."""
    for metadata in (container.metadata, *(stream.metadata for stream in container.streams)):
        for name, value in metadata.items():
            if name.lower() == "comment" and (recipe := Recipe.from_json(value)) is not None:
                return recipe
    return None


def read_recipe(path: MediaSource) -> Recipe | None:
    """
    Read how a sound was generated from the metadata of its file.

    Args:
        path (`str`, `os.PathLike` or `MediaBytes`): Sound or video file.

    Returns:
        `Recipe`, *optional*: The recipe; `None` if the file has none.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError, MediaError: The file cannot be read, or its recipe is
            damaged.
    """
    from .containers import open_media

    with open_media(path) as container:
        try:
            return recipe_of(container)
        except ValueError as error:
            raise MediaError(f"{path}: {error}") from None


def _text(most: int = MAX_BYTES) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or "\0" in value:
            raise ValueError
        value.encode()
        return value

    return check


def _name(value: Any) -> str:
    name = file_name(_text()(value))
    if not 0 < len(name) <= MAX_NAME or name in (".", ".."):
        raise ValueError
    return name


def _choice(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return value

    return check


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return check


def _real(low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
            raise ValueError
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _guider(value: Any) -> str:
    try:
        return guider(_text(MAX_NAME)(value))
    except ArgumentTypeError:
        raise ValueError from None


def _pairs(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], tuple]:
    def check(value: Any) -> tuple:
        if not isinstance(value, list) or len(value) > MAX_COUNT:
            raise ValueError
        return tuple((first(one), second(other)) for one, other in value)

    return check


CHECKS: dict[str, Callable[[Any], Any]] = {
    "model": _text(MAX_NAME),
    "seed": _whole(0, MAX_SEED),
    "prompt": _text(),
    "negative_prompt": _text(),
    "video": _name,
    "image": _name,
    "audio": _name,
    "negative_video": _name,
    "negative_audio": _name,
    "length": _real(0),
    "inpaint": _pairs(_real(0), _real(0)),
    "extend": _real(),
    "strength": _real(0, 1),
    "crossfade": _real(0),
    "steps": _whole(1, MAX_COUNT),
    "guidance": _real(),
    "guidance_rescale": _real(0, 1),
    "guidance_weights": _pairs(_choice(*MODALITIES), _real()),
    "guidance_interval": _pairs(_real(0, 1), _real(0, 1)),
    "guider": _guider,
    "audio_padding": _choice("left", "right"),
    "window_overlap": _real(0),
    "window_batch": _whole(1, MAX_COUNT),
    "normalize": _flag,
    "dtype": _choice("float32", "bfloat16", "float16", "mixed"),
    "lora": _pairs(_text(MAX_NAME), _real()),
    "loudness": _real(),
    "version": _text(MAX_NAME),
}
