"""The processes that share the work of a command, as `accelerate launch` or `torchrun` starts them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import PartialState


@contextmanager
def connected_processes() -> Iterator[PartialState]:
    """
    Connect the processes of this command, and disconnect them at the end.

    They talk over the CPU. A process that exits while connected can abort in the threads of its connection.
    """
    # Shares take different times, so waiting for the slowest process has no limit.
    state = PartialState(cpu=True, timeout=timedelta(days=365))
    try:
        yield state
    finally:
        state.destroy_process_group()
