"""Files with one request for a sound per line, as JSON."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from .requests import FILE_KEYS

PROMPT_KEYS = {
    "prompt": str,
    "negative_prompt": str,
    "video": str,
    "image": str,
    "audio": str,
    "seed": int,
    "length": (int, float),
}


def read_prompt_file(path: str | os.PathLike, **more_keys: type) -> dict[int, dict[str, Any]]:
    """
    Read the requests of a file.

    Args:
        path (`str` or `os.PathLike`): JSON lines with keys of `PROMPT_KEYS`. Paths in it are relative to the file.
        more_keys (`type`): Further keys that are allowed, and their types.

    Returns:
        `dict`: The values of each line that is not blank, by line number, with files as `Path`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is wrong, which the message names, or there is none.
    """
    requests = read_lines(path, **more_keys)
    for number, outcome in requests.items():
        if isinstance(outcome, ValueError):
            raise ValueError(f"{path}, line {number}: {outcome}") from None
    return requests


def read_lines(path: str | os.PathLike, **more_keys: type) -> dict[int, dict[str, Any] | ValueError]:
    """
    Read a file as [`read_prompt_file`] does, but return the error of a wrong line instead of its values.

    "-" stands for standard input. Paths in it, and in a pipe, are relative to the current directory.
    """
    keys = {**PROMPT_KEYS, **more_keys}
    path = Path(path)
    piped = str(path) == "-" or (path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir())
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    folder = Path() if piped else path.parent
    requests: dict[int, dict[str, Any] | ValueError] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests[number] = _read_line(line, keys, folder)
            except ValueError as error:
                requests[number] = error
    if not requests:
        raise ValueError(f"{path}: has no lines")
    return requests


def _read_line(line: str, keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {type(values).__name__}")
    for key, value in values.items():
        if key not in keys:
            raise ValueError(f"unknown key {key!r}, use {', '.join(keys)}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise ValueError(f"{key} is of the wrong type: {json.dumps(value)}")
        if key in FILE_KEYS and "\0" in value:
            raise ValueError(f"{key} contains a null character")
    return {key: folder / value if key in FILE_KEYS else value for key, value in values.items()}
