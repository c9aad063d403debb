"""Options of early stopping on held-out clips."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from ..arguments import Arguments, Count


@dataclass(kw_only=True)
class HeldOutArguments(Arguments):
    _argument_group_name = "early stopping"

    held_out: str | None = HfArg(
        default=None,
        help="Dataset of held-out clips for early stopping. Their loss is measured every --validation_steps, and the"
        " best weights are saved.",
    )
    early_stopping_patience: Count = HfArg(
        default=3, help="Stop after this many measurements in a row without improvement."
    )
