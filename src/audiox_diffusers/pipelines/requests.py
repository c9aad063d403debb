"""Checks of what one sound is asked for, so that a bad request fails before sampling or training starts."""

import math
import os
from collections.abc import Mapping
from typing import Any

from ..messages import shortened
from ..option_types import MAX_SEED

# Longest sound that can be asked for, in seconds: a day.
MAX_LENGTH = 24 * 60 * 60
# Values of a request that are files.
FILE_KEYS = ("video", "image", "audio", "negative_video", "negative_audio")


def check_request(request: Mapping[str, Any]) -> None:
    """
    Check the values of a request.

    Args:
        request (`Mapping`): Values for the keys of `PROMPT_KEYS`. `None` stands for a missing value.

    Raises:
        ValueError: Values are missing, contradict each other or are out of range.
    """
    if all(request.get(name) is None for name in ("prompt", "video", "image", "audio")):
        raise ValueError("give at least one of prompt, video, image and audio")
    if request.get("video") is not None and request.get("image") is not None:
        raise ValueError("give either video or image, not both")
    for name in ("prompt", "negative_prompt"):
        check_text(name, request.get(name))
    seed, length = request.get("seed"), request.get("length")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in 0..2**64 - 1, got {shortened(seed)}")
    # Compared before anything converts it: JSON holds whole numbers that no float can hold.
    if length is not None and not (0 < length <= MAX_LENGTH and math.isfinite(length)):
        raise ValueError(f"length must be above 0 and at most {MAX_LENGTH} seconds, got {shortened(length)}")


def check_text(name: str, text: str | None) -> None:
    """Raise `ValueError` if a text holds half of a surrogate pair, which no tokenizer can encode."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not valid text: {text[error.start]!r} at character {error.start + 1} is half of a character"
        ) from None


def check_request_files(request: Mapping[str, Any]) -> None:
    """
    Read the beginning of each file of a request.

    Raises:
        ValueError, OSError: A file cannot be read.
    """
    from ..media import load_audio, load_image, load_video
    from .features import is_features, load_features

    for name in FILE_KEYS:
        file = request.get(name)
        if file is None:
            continue
        if name == "image":
            load_image(file)
        elif name.endswith("audio"):
            load_audio(file, duration=0.1)
        elif is_features(file):
            load_features(file, "video_embeds")
        else:
            load_video(file, duration=0.1)


def check_request_paths(request: Mapping[str, Any]) -> None:
    """Raise `FileNotFoundError` if a file of a request does not exist. "-" stands for standard input."""
    for name in FILE_KEYS:
        path = request.get(name)
        if path is not None and str(path) != "-" and not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file")
