"""Training: what all training scripts share."""

import sys
from collections.abc import Sequence

from .arguments import parse_args
from .trainer import Trainer

__all__ = ["Trainer", "main", "parse_args"]


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the arguments say. What is wrong with them, or with what they name, is told in a line."""
    args = parse_args(argv)
    try:
        trainer = Trainer(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    trainer.train()
