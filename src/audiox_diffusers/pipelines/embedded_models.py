"""The models of the package by name."""

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from ..atomic import replacing
from ..embedded import EMBEDDED_FOLDERS, EMBEDDED_MODEL
from .cache_errors import writing_to_cache


def find_embedded(name: str, cache_dir: str | Path | None = None) -> Path:
    """
    Return the folder of a model of the package.

    The few-step student shares most files with its teacher. On first use they are put together in the Hugging Face
    cache, as `audiox_diffusers/NAME`.

    Args:
        name: Name of the model.
        cache_dir: Hugging Face cache. Defaults to `HF_HUB_CACHE`.

    Raises:
        OSError: The cache is full or not writable.
    """
    folder, teacher = EMBEDDED_FOLDERS[name], EMBEDDED_FOLDERS[EMBEDDED_MODEL]
    if name == EMBEDDED_MODEL:
        return folder
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    commit = _digest(teacher, folder)
    repository = cache / f"models--audiox_diffusers--{name}"
    model = repository / "snapshots" / commit
    if model.is_dir():
        return model
    with writing_to_cache(name, cache):
        lock = cache / ".locks" / repository.name / "copy.lock"
        for path in (lock, model, repository / "refs" / "main"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock), replacing(model) as copy:
            shutil.copytree(teacher, copy)
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            (repository / "refs" / "main").write_text(commit)
    return model


@lru_cache
def _digest(*folders: Path) -> str:
    """Return a name for the contents of folders. They are read once a process."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
