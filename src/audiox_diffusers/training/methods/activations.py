"""Memory of activations: gradient checkpointing, and offloading to the CPU."""

from typing import Any

import torch
import torch.nn as nn
from diffusers import ModelMixin
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def enable_gradient_checkpointing(model: nn.Module, interval: int = 1) -> None:
    """
    Enable gradient checkpointing in every `interval`-th block of a model of diffusers or transformers, the first included,
    if it supports it.

    Raises:
        ValueError: A transformer of this package has fewer blocks than `interval`.
    """
    if not isinstance(model, ModelMixin):
        model.gradient_checkpointing_enable()
        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    elif model._supports_gradient_checkpointing:
        model.enable_gradient_checkpointing(_checkpoint_if_enabled)
        blocks = model.transformer_blocks
        if interval > len(blocks):
            raise ValueError(
                f"--gradient_checkpointing_interval must be at most {len(blocks)}, the number of blocks of the"
                f" transformer, got {interval}"
            )
    else:
        return
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = number % interval == 0


def _checkpoint_if_enabled(block: nn.Module, *inputs: Any) -> torch.Tensor:
    # A compiled block wraps the one that has the attribute.
    if getattr(block, "_orig_mod", block).gradient_checkpointing:
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class OffloadedActivations(saved_tensors_hooks):
    """
    Context in which the tensors that the backward pass needs wait on the CPU.

    Weights stay where they are. With gradient checkpointing, only the inputs of the checkpointed blocks move.

    Args:
        model: Module whose weights stay.
    """

    def __init__(self, model: nn.Module):
        weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}

        def pack(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
            if _storage(tensor) in weights:
                return tensor.device, tensor
            pinned = tensor.device.type == "cuda"
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=pinned)
            return tensor.device, copy.copy_(tensor)

        def unpack(packed: tuple[torch.device, torch.Tensor]) -> torch.Tensor:
            device, tensor = packed
            return tensor.to(device, non_blocking=tensor.is_pinned())

        super().__init__(pack, unpack)


def _storage(tensor: torch.Tensor) -> int:
    """Return the identity of the storage, which a tensor shares with its views."""
    return tensor.untyped_storage()._cdata
