"""What processes exchange when diffusers splits a model: neighboring tokens, and the features of linear layers."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed._functional_collectives import all_gather_tensor_autograd


def convolve_tokens(conv: nn.Conv1d, tokens: torch.Tensor, parallel_config=None) -> torch.Tensor:
    """
    Convolve tokens `[B, N, C]` over time, with kernel 3.

    Args:
        conv: Convolution that keeps the number of tokens.
        tokens: Tokens `[B, N, C]`. With context parallelism, those of this process.
        parallel_config: diffusers' `ParallelConfig`, if the tokens are split.
    """
    if parallel_config is None:
        return conv(tokens.transpose(1, 2)).transpose(1, 2)
    tokens = _add_neighbors(tokens, parallel_config.context_parallel_config._flattened_mesh.get_group())
    return conv(tokens.transpose(1, 2)).transpose(1, 2)[:, 1:-1]


def _add_neighbors(tokens: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """Add the last token of the previous process and the first of the next one. At the ends, add zeros."""
    rank = torch.distributed.get_rank(group)
    edges = torch.cat((tokens[:, :1], tokens[:, -1:]), dim=1)
    # First and last token of each process in turn, between zeros.
    edges = F.pad(all_gather_tensor_autograd(edges, 1, group), (0, 0, 1, 1))
    before, after = edges[:, 2 * rank, None], edges[:, 2 * rank + 3, None]
    return torch.cat((before, tokens, after), dim=1)


def gather_features(linear: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    """Join the outputs of a linear layer whose features tensor parallelism splits."""
    mesh = getattr(linear.weight, "device_mesh", None)
    if mesh is None:
        return hidden_states
    return all_gather_tensor_autograd(hidden_states.contiguous(), hidden_states.ndim - 1, mesh.get_group())
