"""A context that stays the same while latents are denoised, and the projections of it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn


class LayerContext:
    """
    The context `[B, S, D]` of one layer, which caches its projection. Nothing is cached with gradients, or in compiled
    code, where CUDA graphs would overwrite the cache.
    """

    def __init__(self, hidden_states: torch.Tensor):
        self.hidden_states = hidden_states
        self.shape = hidden_states.shape
        self._projected = None

    def project(self, projection: Callable[[torch.Tensor], Any]) -> Any:
        """Project the context, or return the cached projection. `projection` must be the same in every call."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return projection(self.hidden_states)
        if self._projected is None:
            self._projected = projection(self.hidden_states)
        return self._projected


class AudioXContext(LayerContext):
    """
    A context for several forward passes of one transformer. The first pass caches everything that depends on the
    context alone: the projected context, the keys and values of cross-attention, the modulation of the MMDiT's blocks.

    Create a new one when the transformer, its weights, its precision, or the adapters and their scale change.

    Args:
        hidden_states (`torch.Tensor` of shape `[B, S, cross_attention_input_dim]`): Context. If the transformer's
            `null_context_vanishes`, it may have fewer rows than the latents. It then belongs to the last rows, and the
            first rows get the null context.
    """

    def layers(self, embed: Callable[[torch.Tensor], torch.Tensor], num_layers: int) -> list[LayerContext]:
        """Project the context with `embed` and return one `LayerContext` per layer."""

        def split(hidden_states: torch.Tensor) -> list[LayerContext]:
            embedded = embed(hidden_states)
            return [LayerContext(embedded) for _ in range(num_layers)]

        return self.project(split)


def project(context: torch.Tensor | LayerContext, projection: Callable[[torch.Tensor], Any]) -> Any:
    """Project a context, through the cache if it is a `LayerContext`."""
    return context.project(projection) if isinstance(context, LayerContext) else projection(context)


def layer_contexts(
    context: torch.Tensor | AudioXContext, embed: Callable[[torch.Tensor], torch.Tensor], num_layers: int
) -> list[torch.Tensor] | list[LayerContext]:
    """Project the context with `embed` and return one context per layer of a transformer."""
    if isinstance(context, AudioXContext):
        return context.layers(embed, num_layers)
    return [embed(context)] * num_layers


def check_rows(
    transformer: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | AudioXContext
) -> None:
    """Raise `ValueError` unless the context has one row per sample. An [`AudioXContext`] may have fewer."""
    rows, samples = encoder_hidden_states.shape[0], hidden_states.shape[0]
    fewer = isinstance(encoder_hidden_states, AudioXContext) and rows < samples and transformer.null_context_vanishes
    if rows != samples and not fewer:
        raise ValueError(
            f"`encoder_hidden_states` must have one row per sample of `hidden_states`, {samples}, got {rows}."
        )
