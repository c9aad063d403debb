"""
Makes torchaudio importable, for this package and for transformers.

torchaudio's wheel on PyPI carries an extension built for CUDA, which cannot load beside a CPU build of torch and stops
the import. torchaudio is made to run without it, and only its pure-Python functions are used here.
"""

import sys

try:
    import torchaudio
except OSError:
    loader = sys.modules.get("torchaudio._extension.utils")
    if loader is None:
        raise
    loader._load_lib = lambda lib: False
    import torchaudio  # noqa: F401
