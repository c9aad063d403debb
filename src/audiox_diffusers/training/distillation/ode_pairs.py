"""Samples of the teacher for ODE regression, kept on disk."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ...atomic import replacing
from ..data.seeds import generator_for


class OdePairs:
    """
    Batches of teacher paths with their contexts, in one file each. The first steps make them, later steps draw from them.

    Args:
        folder: Folder of the files.
        count: Number of batches, at least 1.
        seed: Seed of the draws.
        process_index: Number of this process, whose batches have their own files.
    """

    def __init__(self, folder: Path, count: int, seed: int, process_index: int):
        self.folder = folder
        self.count = count
        self.seed = seed
        self.process_index = process_index

    def get(self, number: int, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """
        Return a batch, float32, on the CPU. `make` computes the first `count` batches. After them, each comes again in
        random order.
        """
        if number >= self.count:
            generator = generator_for(self.seed, "pairs", number // self.count)
            number = torch.randperm(self.count, generator=generator)[number % self.count].item()
        file = self.folder / f"{self.process_index}-{number}.safetensors"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                save_file({name: tensor.half().cpu().contiguous() for name, tensor in make().items()}, temporary)
        return {name: tensor.float() for name, tensor in load_file(file).items()}
