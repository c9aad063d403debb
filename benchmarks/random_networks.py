"""Networks of the metrics with random weights, for benchmarks that run without downloads."""

import torch
import torch.nn as nn

from audiox_diffusers.evaluation import catalog


class RandomWeights:
    """A network of the catalog with random weights that keep the size of activations from layer to layer."""

    licence = "none"

    def __init__(self, name: str):
        self.build, self.input = catalog.NETWORKS[name].build, catalog.NETWORKS[name].input

    def identity(self, folder):
        return "random weights, seed 0"

    def load(self, folder, device):
        torch.manual_seed(0)
        network = self.build().eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        return network.to(device)


def use_random_weights(*names: str) -> None:
    """Replace networks of the catalog, by name."""
    for name in names:
        catalog.NETWORKS[name] = RandomWeights(name)
