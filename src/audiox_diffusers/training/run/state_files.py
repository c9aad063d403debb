"""
Nested states in two files: tensors as safetensors, everything else as JSON. Reading them runs no code.

`NAME.json` has the structure, with the dtype and shape of each tensor in its place. `NAME.safetensors` has the tensors,
named by their path, such as `optimizer/state/0/exp_avg`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...messages import first_line, shortened

# Keys of the JSON objects that stand for values that JSON does not have.
TENSOR, TUPLE, NUMBERED, FLOAT = "$tensor", "$tuple", "$numbered", "$float"
FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class CheckpointError(ValueError):
    """A file of a checkpoint cannot be used. The message names it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise errors while a file or folder of a checkpoint is read as [`CheckpointError`]."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the type depends on the damage
        raise CheckpointError(f"--resume_from_checkpoint: {path} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"it is not JSON ({first_line(error)})"
    if isinstance(error, SafetensorError):
        return f"it is not a safetensors file ({first_line(error)})"
    return first_line(error) if type(error) is ValueError else f"{type(error).__name__}: {first_line(error)}"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or is no JSON object.
    """
    with reading(path):
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            raise ValueError(f"it must be a JSON object, got {shortened(value)}")
        return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def json_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def tensor_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def write_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """
    Write a state.

    Args:
        folder: Existing folder.
        name: Name of the two files, without suffix.
        state: Tensors, numbers, strings and `None` in dicts, lists and tuples. Keys are strings or integers.

    Raises:
        TypeError: The state contains something else.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _encode(state, (), tensors)
    # safetensors refuses tensors that share memory.
    memory: set[int] = set()
    for path, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        tensors[path] = tensor.clone() if pointer in memory else tensor
        memory.add(pointer)
    save_file(tensors, tensor_file(folder, name))
    write_json(json_file(folder, name), structure)


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """
    Read what [`write_state`] wrote. Tensors are on the CPU.

    Raises:
        CheckpointError: A file is missing or damaged, or the two files do not belong together.
    """
    structure = read_json(json_file(folder, name))
    tensors = read_tensors(tensor_file(folder, name))
    unused = set(tensors)
    with reading(json_file(folder, name)):
        state = _decode(structure, (), tensors, unused)
        if unused:
            raise ValueError(f"it does not list {sorted(unused)[0]}, which {name}.safetensors has")
    return state


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    Read a safetensors file of a checkpoint into memory, so that the file can be removed during the run.

    Raises:
        CheckpointError: The file cannot be read.
    """
    with reading(path), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def _encode(value: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensor = tensors["/".join(path)] = value.detach().cpu().contiguous()
        return {TENSOR: _form(tensor)}
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_encode(item, (*path, str(number)), tensors) for number, item in enumerate(value)]
        return {TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        numbered = bool(value) and all(type(key) is int for key in value)
        if not numbered and any(not isinstance(key, str) or key.startswith("$") or "/" in key for key in value):
            raise TypeError(f"a checkpoint cannot have these names in {'/'.join(path)}: {shortened(list(value))}")
        items = {str(key): _encode(item, (*path, str(key)), tensors) for key, item in value.items()}
        return {NUMBERED: items} if numbered else items
    raise TypeError(f"a checkpoint cannot have a {type(value).__name__} in {'/'.join(path)}")


def _form(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _decode(value: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor], unused: set[str]) -> Any:
    if isinstance(value, list):
        return [_decode(item, (*path, str(number)), tensors, unused) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if tag == TENSOR:
        name = "/".join(path)
        if name not in tensors:
            raise ValueError(f"it lists the tensor {name}, which the safetensors file of the same name lacks")
        unused.discard(name)
        if value[TENSOR] != _form(tensors[name]):
            raise ValueError(f"it says that {name} is {value[TENSOR]}, but the tensor is {_form(tensors[name])}")
        return tensors[name]
    if tag == FLOAT and value[FLOAT] in FLOATS:
        return FLOATS[value[FLOAT]]
    if tag == TUPLE and isinstance(value[TUPLE], list):
        return tuple(_decode(value[TUPLE], path, tensors, unused))
    numbered = tag == NUMBERED and isinstance(value[NUMBERED], dict)
    items = value[NUMBERED] if numbered else value
    decoded = {}
    for key, item in items.items():
        if key.startswith("$") or (numbered and not key.isascii()):
            raise ValueError(f"unknown name {key!r} in {'/'.join(path)}")
        decoded[int(key) if numbered else key] = _decode(item, (*path, key), tensors, unused)
    return decoded


def check_like(value: Any, like: Any, name: str) -> None:
    """
    Check that a value has the structure of another one: names, lengths, types, and shapes and dtypes of tensors. Numbers
    must be finite if those of `like` are.

    Args:
        value: What was read.
        like: Present value, which the run has before it resumes.
        name: Name of the value in the message.

    Raises:
        ValueError: They differ.
    """
    if isinstance(like, torch.Tensor):
        found = _form(value) if isinstance(value, torch.Tensor) else shortened(value)
        if found != _form(like):
            raise ValueError(f"{name} must be a tensor {_form(like)}, got {found}")
    elif isinstance(like, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {shortened(value)}")
        if math.isfinite(like) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    elif isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{name} must have {shortened([*like], 200)}, got {shortened(_keys(value), 200)}")
        for key in like:
            check_like(value[key], like[key], f"{name}/{key}")
    elif type(value) is not type(like):
        kind = "nothing" if like is None else type(like).__name__
        raise ValueError(f"{name} must be {kind}, got {shortened(value)}")
    elif isinstance(like, list | tuple):
        if len(value) != len(like):
            raise ValueError(f"{name} must have {len(like)} items, got {len(value)}")
        for number, (item, other) in enumerate(zip(value, like, strict=True)):
            check_like(item, other, f"{name}/{number}")


def _keys(value: Any) -> Any:
    return [*value] if isinstance(value, dict) else value


def check_count(value: Any, name: str) -> int:
    """Return a number that must be an integer of 0 or more."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be an integer of 0 or more, got {shortened(value)}")
    return value
