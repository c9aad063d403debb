"""Random draws that depend on what is drawn for, and on nothing else."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits, one for each sequence of parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A generator on the CPU with the seed of the parts, so that draws are the same on all devices."""
    return torch.Generator().manual_seed(derive_seed(*parts))
