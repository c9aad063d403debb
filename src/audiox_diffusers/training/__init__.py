"""Training of AudioX: `parse_args`, `main`, [`Trainer`] and the training methods."""

from collections.abc import Sequence

from .arguments import TrainingArguments, parse
from .methods.distill import DistillTraining
from .methods.full import FullTraining
from .methods.lora import LoraTraining
from .run.start import start
from .trainer import Trainer

__all__ = ["DistillTraining", "FullTraining", "LoraTraining", "Trainer", "main", "parse_args"]

# Names of earlier versions.
FullTuning, LoraTuning = FullTraining, LoraTraining


def parse_args(
    argv: Sequence[str] | None = None, method: type[FullTraining] = FullTraining, prog: str | None = None
) -> TrainingArguments:
    """Parse the options of a training script. An error is printed as argparse prints its own, and ends the process."""
    return parse(method.arguments, method.description, argv, prog)


def main(
    argv: Sequence[str] | None = None, method: type[FullTraining] = FullTraining, prog: str | None = None
) -> None:
    """
    Run a training script. Errors in options, and divergence, end the process with one line.

    Args:
        argv: Options. Defaults to those of the process.
        method: Training method.
        prog: Name of the program in its help.
    """
    args = parse_args(argv, method, prog)
    start(lambda: Trainer(args, method))
