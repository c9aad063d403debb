"""Types for the options of command lines. They check ranges, so that wrong values are reported at once."""

import argparse
import math
import re
from collections.abc import Callable

from .messages import shortened

MAX_SEED = 2**64 - 1
MODALITIES = ("text", "video", "audio")
# Guiders: the class in diffusers, and the argument and default of each option.
GUIDERS = {
    "apg": (
        "AdaptiveProjectedGuidance",
        {
            "momentum": ("adaptive_projected_guidance_momentum", -0.5),
            "eta": ("eta", 1.0),
            "norm": ("adaptive_projected_guidance_rescale", 0.0),
        },
    ),
    "cfg-zero-star": ("ClassifierFreeZeroStarGuidance", {"zero_steps": ("zero_init_steps", 1)}),
}


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a type for options: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            most = "2**64 - 1" if high == MAX_SEED else high
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {most}, got {shortened(text)}")
        return value

    return parse


def real(low: float, high: float, above: bool = False, nonzero: bool = False) -> Callable[[str], float]:
    """Return a type for options: a number from `low`, or `above` it, to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low) or (nonzero and not value):
            span = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(
                f"must be a number {span}{' other than 0' if nonzero else ''}, got {shortened(text)}"
            )
        return value

    return parse


def guidance(low: float, high: float) -> Callable[[str], float | dict[str, float]]:
    """Return a type for options: a guidance scale, or weights by modality such as `text=3,video=7`."""
    scale = real(low, high)

    def parse(text: str) -> float | dict[str, float]:
        if "=" not in text:
            return scale(text)
        weights = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in MODALITIES or name in weights:
                raise argparse.ArgumentTypeError(
                    f"must be a number or weights for {', '.join(MODALITIES)}, such as text=3,video=7,"
                    f" got {shortened(text)}"
                )
            weights[name] = scale(value)
        return weights

    return parse


def guider(text: str) -> str:
    """Check a guider and its options, such as `apg` or `apg:eta=0.5,momentum=-0.75`, and return the text."""
    guider_arguments(text)
    return text


def guider_arguments(text: str) -> tuple[str, dict[str, float]]:
    """Parse a guider. Return the name of its class in diffusers, and the arguments but the scale."""
    name, colon, rest = text.partition(":")
    if name not in GUIDERS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(GUIDERS)}, got {shortened(text)}")
    class_name, options = GUIDERS[name]
    arguments = {}
    for part in rest.split(",") if colon else ():
        option, _, value = part.strip().partition("=")
        argument, default = options.get(option, (None, None))
        if argument is None or argument in arguments:
            raise argparse.ArgumentTypeError(
                f"must be {name} with any of its options {', '.join(options)}, as in {name}:{next(iter(options))}=1,"
                f" got {shortened(text)}"
            )
        parse = whole(0, 10000) if isinstance(default, int) else real(-1000, 1000)
        arguments[argument] = parse(value)
    return class_name, {**dict(options.values()), **arguments}


def interval(text: str) -> tuple[float, float]:
    """Parse LOW-HIGH, two times in 0..1."""
    found = _range(text)
    if found is None or found[1] > 1:
        raise argparse.ArgumentTypeError(
            f"must be LOW-HIGH with 0 <= LOW < HIGH <= 1, such as 0.2-0.8, got {shortened(text)}"
        )
    return found


def span(text: str) -> tuple[float, float]:
    """Parse START-END in seconds."""
    found = _range(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"must be START-END in seconds with END after START, such as 2.5-7.5, got {shortened(text)}"
        )
    return found


def _range(text: str) -> tuple[float, float] | None:
    """Return two numbers joined by a dash, the second above the first. `None` for other texts."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{0,9})?)-(\d{1,9}(?:\.\d{0,9})?)", text)
    if match is None or float(match[2]) <= float(match[1]):
        return None
    return float(match[1]), float(match[2])
