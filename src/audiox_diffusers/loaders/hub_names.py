"""What models and datasets are called where others read it."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def on_hub(name: str) -> bool:
    """Whether a model or dataset of that name is one of the Hub, and no file, folder or glob."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def public_name(name: str) -> str:
    """The name on the Hub, or without the folders that lead to it."""
    return name if on_hub(name) else Path(name).resolve().name
