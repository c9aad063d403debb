"""Lock of an output folder, so that two runs do not mix their files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging

logger = logging.get_logger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Hold the lock of an output folder. The system releases it when the process ends, however that happens.

    Raises:
        ValueError: Another run holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--output_dir {folder} is in use by another run") from None
        except OSError as error:
            logger.warning(f"--output_dir {folder} cannot be locked ({error.strerror}); start no other run in it")
        yield
    finally:
        os.close(descriptor)
