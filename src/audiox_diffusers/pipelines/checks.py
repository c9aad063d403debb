"""Argument checks. Every error names the argument, what was given and what is allowed."""

import math
import numbers
from typing import Any

import torch

from .requests import MAX_LENGTH

# Upper limits, so that a typing mistake does not fill the memory or run for days.
MAX_STEPS = 10_000
MAX_WAVEFORMS = 1000
MAX_REFINEMENTS = 1000
MAX_GUIDANCE = 1000.0


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number. Booleans are not."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_count(name: str, value: Any, lowest: int = 1, highest: int | None = None) -> None:
    """Raise `ValueError` unless a value is a whole number in `lowest..highest`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):
        allowed = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
        raise ValueError(f"`{name}` must be a whole number, {allowed}, got {value!r}.")


def check_duration(name: str, seconds: Any, rate: int, num_sounds: int) -> None:
    """Raise `ValueError` unless a duration has a sample, and all sounds together have no more than a day."""
    if not is_number(seconds) or seconds * rate < 1:
        raise ValueError(
            f"`{name}` must be a number of seconds, at least one sample ({1 / rate:.2g} s), got {seconds!r}."
        )
    if seconds * num_sounds > MAX_LENGTH:
        raise ValueError(
            f"`{name}`: a call handles at most {MAX_LENGTH:g} s of sound, got {num_sounds} x {seconds:g} s."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless a value is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def check_tensor(name: str, value: Any, shape: tuple[int | str, ...]) -> None:
    """Raise `ValueError` unless a value is a finite floating-point tensor. Strings in `shape` stand for any size."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    fits = len(value.shape) == len(shape) and all(
        size > 0 if isinstance(wanted, str) else size == wanted for size, wanted in zip(value.shape, shape)
    )
    if not fits:
        raise ValueError(f"`{name}` must have the shape [{', '.join(map(str, shape))}], got {list(value.shape)}.")
    if not value.is_floating_point():
        raise ValueError(f"`{name}` must be floating point, got {value.dtype}.")
    if not torch.isfinite(value).all():
        raise ValueError(f"`{name}` holds NaN or infinite values.")


def check_generator(generator: Any, num_sounds: int) -> None:
    """Raise `ValueError` unless a value is `None`, a generator, or a list of one for each sound."""
    generators = generator if isinstance(generator, list) else [generator]
    for item in generators:
        if not isinstance(item, torch.Generator) and generator is not None:
            raise ValueError(
                "`generator` must be a torch.Generator, such as torch.Generator().manual_seed(42), or a list of them,"
                f" got {item!r}."
            )
    if isinstance(generator, list) and len(generator) != num_sounds:
        raise ValueError(f"`generator` is a list of {len(generator)}, for {num_sounds} sounds.")
