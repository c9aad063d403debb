"""Silence for the libraries, so that the terminal shows a command's own lines."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging
import huggingface_hub.utils.logging
import transformers.utils.logging
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

from .terminal import log


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log(f"audiox: {record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """
    Silence the libraries except for progress bars of sampling and downloads, and print this package's warnings on
    stderr, one line each. All settings are restored at the end.
    """
    handler = _Terminal()
    package = logging.getLogger("audiox_diffusers")
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    loggers = (*libraries, huggingface_hub.utils.logging)
    verbosity = [logger.get_verbosity() for logger in loggers]
    bars_shown = [library.is_progress_bar_enabled() for library in libraries]
    downloads_shown = not are_progress_bars_disabled()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package.addHandler(handler)
        for logger in loggers:
            logger.set_verbosity_error()
        for library in libraries:
            library.disable_progress_bar()
        if downloads_shown:
            enable_progress_bars()
        try:
            yield
        finally:
            package.removeHandler(handler)
            for logger, level in zip(loggers, verbosity):
                logger.set_verbosity(level)
            for library, shown in zip(libraries, bars_shown):
                if shown:
                    library.enable_progress_bar()
