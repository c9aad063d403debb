"""Stop requests: SIGTERM, which job schedulers send before they end a run, and the end of `accelerate launch`."""

import os
import signal
from typing import Any

# `accelerate launch` sets this for the processes that it starts.
LAUNCHED = "ACCELERATE_MIXED_PRECISION"


class Interruption:
    """
    Context in which SIGTERM does not end the process, so that the current step can finish.

    `accelerate launch` does not pass SIGTERM on: it dies and leaves the training running. So the death of the launcher
    is a stop request, too.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._launcher = os.getppid() if LAUNCHED in os.environ else None

    @property
    def signalled(self) -> bool:
        """Whether the run was asked to stop."""
        return self._signalled or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> "Interruption":
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: Any) -> None:
        self._signalled = True


def stopped_at(step: int) -> str:
    """Return the message of a run that was asked to stop."""
    return f"stopped at step {step} as asked; resume with --resume_from_checkpoint latest"
