"""Training: what all training scripts share."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from . import arguments
from .methods.full import FullTuning
from .methods.lora import LoraTuning
from .trainer import Trainer

__all__ = ["FullTuning", "LoraTuning", "Trainer", "main", "parse_args"]


def parse_args(argv: Sequence[str] | None = None, tuning: type = FullTuning) -> Namespace:
    """The arguments of a script; what is wrong is reported as argparse does, naming the argument."""
    return arguments.parse_args(argv, tuning)


def main(argv: Sequence[str] | None = None, tuning: type = FullTuning) -> None:
    """Train as the arguments say. What is wrong with them, or with what they name, is told in a line."""
    args = parse_args(argv, tuning)
    try:
        trainer = Trainer(args, tuning)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    trainer.train()
