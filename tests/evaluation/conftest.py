import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).parents[1] / "fixtures" / "evaluation"


def hashed(count: int, salt: int) -> torch.Tensor:
    """Numbers in -1..1 that depend on their index and a salt alone, float32 `[count]`."""
    mask = np.uint64(0xFFFFFFFF)
    h = (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B1) + np.uint64(salt)) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint64(shift)
        h = (h * np.uint64(factor)) & mask
    h ^= h >> np.uint64(16)
    return torch.from_numpy((h.astype(np.float64) / 2**32 * 2 - 1).astype(np.float32))


def hashed_weight(name: str, shape: list[int]) -> torch.Tensor:
    """A weight of the reference networks, from the CRC-32 of its name."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    values = hashed(math.prod(shape), zlib.crc32(name.encode())).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * values
    if name.endswith("running_mean"):
        return 0.1 * values
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * values
    if name.endswith("bias"):
        return 0.05 * values
    if name.endswith("weight"):
        return values * math.sqrt(6 / math.prod(shape[1:]))
    return 0.1 * values


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "golden.safetensors")


@pytest.fixture(scope="session")
def values() -> dict:
    return json.loads((FIXTURES / "values.json").read_text())


@pytest.fixture(scope="session")
def wave(golden) -> torch.Tensor:
    """Two seconds of sound at 32 kHz, `[1, 64000]`."""
    return golden["wave.32k"].float()[None] / 32768


@pytest.fixture(scope="session")
def released_state_dict():
    """A checkpoint under its released names, with hashed weights."""
    keys = json.loads((FIXTURES / "keys.json").read_text())
    return lambda network: {name: hashed_weight(name, shape) for name, shape in keys[network].items()}


@pytest.fixture(scope="session")
def hashed_numbers():
    return hashed


@pytest.fixture(scope="session")
def close():
    """Assert that a tensor is a golden to a share of the golden's largest value."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
        assert actual.shape == expected.shape
        difference = (actual - expected).abs().max() / expected.abs().max()
        assert difference < tolerance, f"off by {difference:.1e} of the largest value"

    return check
