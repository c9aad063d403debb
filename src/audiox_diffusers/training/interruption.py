"""SIGTERM, which job schedulers send before they end a run."""

import signal
from typing import Any


class Interruption:
    """
    Context in which SIGTERM does not end the process, so that the current step can finish.

    Attributes:
        signalled (`bool`): Whether SIGTERM has arrived.
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
    """Return the message of a run that SIGTERM stopped."""
    return f"SIGTERM: stopped at step {step}; resume with --resume_from_checkpoint latest"
