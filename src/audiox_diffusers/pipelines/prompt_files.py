"""JSON Lines files with one request for a sound per line."""

import json
from pathlib import Path
from typing import Any

PROMPT_KEYS = {
    "prompt": str,
    "negative_prompt": str,
    "video": str,
    "image": str,
    "audio": str,
    "seed": int,
    "length": (int, float),
}
FILE_KEYS = ("video", "image", "audio")


def read_prompt_file(path: Path, **more_keys: type) -> dict[int, dict[str, Any]]:
    """
    Read the requests of a file by line number. Blank lines are skipped; paths are relative to the file.

    Args:
        path (`Path`): JSON Lines with the keys of `PROMPT_KEYS`.
        more_keys (`type`): Names and types of further keys to allow.

    Raises:
        ValueError: A line is wrong (the message has its number), or there are no lines.
    """
    keys = {**PROMPT_KEYS, **more_keys}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    requests = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests[number] = _read_line(line, keys, path.parent)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not requests:
        raise ValueError(f"{path}: has no lines")
    return requests


def _read_line(line: str, keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {type(values).__name__}")
    for key, value in values.items():
        if key not in keys:
            raise ValueError(f"unknown key {key!r}, use {', '.join(keys)}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise ValueError(f"{key} is of the wrong type: {json.dumps(value)}")
    return {key: folder / value if key in FILE_KEYS else value for key, value in values.items()}
