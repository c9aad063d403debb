"""Argument checks. Every error names the argument, what was given and what is allowed."""

import math
import numbers
from typing import Any

import torch


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number."""
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        return False


def check_count(name: str, value: Any, lowest: int = 1) -> None:
    """Raise `ValueError` unless a value is a whole number of at least `lowest`."""
    if not isinstance(value, numbers.Integral) or value < lowest:
        raise ValueError(f"`{name}` must be a whole number, {lowest} or more, got {value}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless a value is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def check_shape(name: str, value: torch.Tensor, shape: tuple[int | str, ...]) -> None:
    """Raise `ValueError` unless a tensor has this shape. A string in `shape` stands for any size above 0."""
    sizes = value.shape
    if len(sizes) != len(shape) or any(
        size == 0 if isinstance(wanted, str) else size != wanted for size, wanted in zip(sizes, shape)
    ):
        raise ValueError(f"`{name}` must have the shape [{', '.join(map(str, shape))}], got {list(sizes)}.")


def check_generator(generator: torch.Generator | list[torch.Generator] | None, num_sounds: int) -> None:
    """Raise `ValueError` unless there is one generator, or one for each sound."""
    if isinstance(generator, list) and len(generator) != num_sounds:
        raise ValueError(f"`generator` is a list of {len(generator)}, for {num_sounds} sounds.")
