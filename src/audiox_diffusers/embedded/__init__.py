"""The small model that comes with the package, and the name that stands for it."""

import os
from pathlib import Path

EMBEDDED_MODEL = "audiox-tiny"


def find_model(name: str | os.PathLike) -> str:
    """
    What to load for a name that `from_pretrained` is given.

    Args:
        name: a folder, a Hub id, or `"audiox-tiny"`.

    Returns:
        The folder of the embedded model for its name; every other name as it is, as a string. A folder `audiox-tiny` in the current
        directory goes before the embedded one: to diffusers a name is a folder first.
    """
    # diffusers fails on paths that are no folder.
    name = os.fspath(name)
    if name == EMBEDDED_MODEL and not os.path.isdir(name):
        return str(Path(__file__).parent / EMBEDDED_MODEL)
    return name
