"""What models and datasets are called where others read it."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..embedded import EMBEDDED_MODEL


def on_hub(name: str) -> bool:
    """Whether a model or dataset of that name is one of the Hub: no file, folder or glob, and not the embedded model."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name != EMBEDDED_MODEL and not Path(name).exists()


def public_name(name: str) -> str:
    """The name on the Hub, or without the folders that lead to it."""
    return name if on_hub(name) else Path(name).resolve().name
