"""Records that cannot be trained on."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...messages import first_line


class BadRecord(ValueError):
    """A row that cannot be trained on. The message says why."""


@contextmanager
def bad_records() -> Iterator[None]:
    """Raise every error inside as a `BadRecord`: decoders raise errors of any type for a damaged file."""
    try:
        yield
    except BadRecord:
        raise
    except Exception as error:
        raise BadRecord(first_line(error)) from error
