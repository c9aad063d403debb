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


def parse_args(argv: Sequence[str] | None = None, method: type[FullTraining] = FullTraining) -> TrainingArguments:
    """Parse the options of a training script. An error is printed as argparse prints its own, and ends the process."""
    return parse(method.arguments, method.description, argv)


def main(argv: Sequence[str] | None = None, method: type[FullTraining] = FullTraining) -> None:
    """Run a training script. Errors in options, and divergence, end the process with one line."""
    args = parse_args(argv, method)
    start(lambda: Trainer(args, method))
