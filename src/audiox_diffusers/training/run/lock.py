"""Lock of a folder, so that two runs do not mix their files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging

logger = logging.get_logger(__name__)


@contextmanager
def locked(folder: Path, option: str = "--output_dir") -> Iterator[None]:
    """
    Hold the lock of a folder that `option` names. The system releases it when the process ends, however that happens.

    Raises:
        ValueError: Another run holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{option} {folder} is in use by another run") from None
        except OSError as error:
            logger.warning(f"{option} {folder} cannot be locked ({error.strerror}); start no other run in it")
        yield
    finally:
        os.close(descriptor)
