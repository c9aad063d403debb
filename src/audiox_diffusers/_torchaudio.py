"""
Make torchaudio importable beside a CPU build of torch, for this package and for transformers.

torchaudio's wheel on PyPI carries an extension built for CUDA, which such a torch cannot load. torchaudio runs without
the extension, and only its pure-Python functions are used here.
"""

from types import ModuleType

from ._imports import when_imported


def _tolerate_extension(utils: ModuleType) -> None:
    load = utils._load_lib

    def load_or_skip(lib: str) -> bool:
        try:
            return load(lib)
        except OSError:
            return False

    utils._load_lib = load_or_skip


when_imported("torchaudio._extension.utils", _tolerate_extension)
