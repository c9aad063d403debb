"""Names of models and datasets as others know them."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..embedded import EMBEDDED_FOLDERS
from .releases import find_release


def on_hub(name: str) -> bool:
    """Whether a name is that of a model or dataset on the Hub, and not of a file, a folder or a model of the package."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name not in EMBEDDED_FOLDERS and not Path(name).exists()


def public_name(name: str) -> str:
    """Return the Hub id of a model or dataset, or the last part of a path."""
    if not on_hub(name):
        return Path(name).resolve().name
    release = find_release(name)
    return name if release is None else release.repo_id
