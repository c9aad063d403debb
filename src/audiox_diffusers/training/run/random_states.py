"""States of the random number generators."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .state_files import check_like, json_file, read_state, reading


def random_states() -> dict[str, Any]:
    """Return the states of all random number generators, as tensors and plain values."""
    version, words, gaussian = random.getstate()
    name, keys, position, has_gaussian, cached = np.random.get_state()
    return {
        "python": {
            "version": version,
            "words": torch.tensor(words),
            "has_gaussian": gaussian is not None,
            "gaussian": gaussian or 0.0,
        },
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gaussian": bool(has_gaussian),
            "gaussian": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(folder: Path, name: str) -> None:
    """
    Set the states of all random number generators from the files of a checkpoint.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    states = read_state(folder, name)
    with reading(json_file(folder, name)):
        current = random_states()
        # The run may continue on a machine with another number of GPUs.
        devices = min(len(current["cuda"]), len(states["cuda"]))
        states["cuda"], current["cuda"] = states["cuda"][:devices], current["cuda"][:devices]
        check_like(states, current, name)
        set_random_states(states)


def set_random_states(states: dict[str, Any]) -> None:
    """Set the states that [`random_states`] returned."""
    python, numpy = states["python"], states["numpy"]
    gaussian = python["gaussian"] if python["has_gaussian"] else None
    random.setstate((python["version"], tuple(python["words"].tolist()), gaussian))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], int(numpy["has_gaussian"]), numpy["gaussian"]))
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(state, device)
