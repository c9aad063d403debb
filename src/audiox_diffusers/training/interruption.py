"""SIGTERM, which job schedulers send before they end a run."""

import signal
from typing import Any


class Interruption:
    """
    While it is entered, SIGTERM does not end the process but is noted: a step that has begun is finished first.

    Attributes:
        signalled (`bool`): whether it came.
    """

    def __init__(self) -> None:
        self.signalled = False

    def __enter__(self) -> "Interruption":
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: Any) -> None:
        self.signalled = True


def stopped_at(step: int) -> str:
    """What is said of a run that SIGTERM stopped."""
    return f"SIGTERM: stopped at step {step}; go on with --resume_from_checkpoint latest"
