"""The part of a transformer's work that depends on the context alone, as plain tensors."""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn as nn
from diffusers.utils.accelerate_utils import apply_forward_hook


class AudioXContext(NamedTuple):
    """
    A context for several forward passes of one transformer, made by its `project_context`.

    It is valid for the weights, the precision, the adapters and their scale with which it was made.

    Args:
        layers (`tuple[tuple[torch.Tensor, ...], ...]`): Tensors of each layer. For [`AudioXTransformer2DModel`], the
            keys and values of cross-attention, each `[B, S, kv_heads * head_dim]`. For [`AudioXMMTransformer2DModel`],
            the modulation `[B, L + 1, 6 D]`.
    """

    layers: tuple[tuple[torch.Tensor, ...], ...]

    @property
    def rows(self) -> int:
        """Number of samples `B`."""
        return self.layers[0][0].shape[0]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


def run_offloaded(method: Callable) -> Callable:
    """Let a method of a module run like its `forward` if the weights are offloaded to another device."""

    @apply_forward_hook
    @wraps(method)
    def run(self: nn.Module, *args, **kwargs):
        registry = getattr(self, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if registry is not None else None
        if hook is None:
            return method(self, *args, **kwargs)
        args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return hook.post_forward(self, method(self, *args, **kwargs))

    return run


def layer_contexts(
    transformer: nn.Module, context: torch.Tensor | AudioXContext, embed: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, ...] | tuple[tuple[torch.Tensor, ...], ...]:
    """Return the context of each layer: its tensors if they are there, or else the result of `embed`."""
    if isinstance(context, AudioXContext):
        return context.layers
    return (embed(context),) * len(transformer.transformer_blocks)


def check_rows(transformer: nn.Module, hidden_states: torch.Tensor, context: torch.Tensor | AudioXContext) -> None:
    """Raise `ValueError` unless the context has one row per sample. An [`AudioXContext`] may have fewer."""
    samples = hidden_states.shape[0]
    projected = isinstance(context, AudioXContext)
    rows = context.rows if projected else context.shape[0]
    if rows != samples and not (projected and rows < samples and transformer.null_context_vanishes):
        raise ValueError(
            f"`encoder_hidden_states` must have one row per sample of `hidden_states`, {samples}, got {rows}."
        )
