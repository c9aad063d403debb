"""Start of a training script."""

import sys
from collections.abc import Callable
from typing import Protocol

from ..._imports import exit_quickly
from ...messages import one_line
from .divergence import DivergenceError


class Trains(Protocol):
    def train(self) -> None: ...


def start(build: Callable[[], Trains]) -> None:
    """Build a trainer and train. Wrong options, unusable files and divergence end the process with one line."""
    exit_quickly()
    try:
        trainer = build()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    try:
        trainer.train()
    except DivergenceError as error:
        sys.exit(f"error: {one_line(error)}")
