"""One message for a Hugging Face cache that cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing_to_cache(name: str, cache: Path) -> Iterator[None]:
    """Name the model and the cache in an `OSError` of the file system inside. Errors of the Hub stay as they are."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{name}: cannot be written to the cache {cache} ({error.strerror}). Set HF_HOME or `cache_dir` to another"
            " folder",
        ) from None
