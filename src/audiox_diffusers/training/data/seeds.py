"""Random draws that depend on a few numbers and names alone, not on what was drawn before."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for a sequence of numbers and names."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(*parts)`. On the CPU, draws are the same for every device."""
    return torch.Generator().manual_seed(derive_seed(*parts))
