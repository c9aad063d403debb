"""The models of the package by name."""

import hashlib
import shutil
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from ..atomic import replacing
from ..embedded import EMBEDDED_FOLDERS, EMBEDDED_MODEL


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
    commit = _digest([*teacher.rglob("*"), *folder.rglob("*")])
    repository = cache / f"models--audiox_diffusers--{name}"
    model = repository / "snapshots" / commit
    if model.is_dir():
        return model
    try:
        lock = cache / ".locks" / repository.name / "copy.lock"
        for path in (lock, model, repository / "refs" / "main"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock), replacing(model) as copy:
            shutil.copytree(teacher, copy)
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            (repository / "refs" / "main").write_text(commit)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{name}: cannot be written to the cache {cache} ({error.strerror or error}). Set HF_HOME or `cache_dir` to"
            " another folder",
        ) from None
    return model


def _digest(paths: list[Path]) -> str:
    """Return a name for the contents of files."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
