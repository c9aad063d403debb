"""Loading of the files that DeepSpeed writes into a checkpoint in its own format, which it unpickles."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .state_files import reading

# DeepSpeed's classes in these files.
CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
# Makes every call of `torch.load` create tensors and allowed classes only, whatever its arguments say.
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_deepspeed(engine: Any, folder: Path, tag: str) -> None:
    """
    Load a checkpoint into a DeepSpeed engine, while `torch.load` creates nothing but tensors and DeepSpeed's own classes.

    Raises:
        CheckpointError: A file is damaged, or needs anything else.
    """
    check_deepspeed_files(folder / tag)
    classes = [name.rpartition(".") for name in CLASSES]
    with reading(folder / tag), safe_globals([getattr(import_module(module), name) for module, _, name in classes]):
        with _weights_only():
            engine.load_checkpoint(str(folder), tag)


def check_deepspeed_files(folder: Path) -> None:
    """
    Check the files that DeepSpeed is going to unpickle.

    Raises:
        CheckpointError: A file is damaged, or needs anything but tensors and DeepSpeed's own classes.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with reading(path):
            unsafe = set(get_unsafe_globals_in_checkpoint(path)) - CLASSES
            if unsafe:
                raise ValueError(f"it would run code: {', '.join(sorted(unsafe))}")


@contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before
