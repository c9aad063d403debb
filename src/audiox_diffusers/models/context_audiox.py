"""A context that stays the same while latents are denoised, with all that follows from it alone."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn


class LayerContext:
    """
    A context in the place of the tensor `[B, S, D]`, for one layer. What the layer makes of it is kept, except where
    gradients are, and in compiled code, whose CUDA graphs would overwrite it.
    """

    def __init__(self, hidden_states: torch.Tensor):
        self.hidden_states = hidden_states
        self.shape = hidden_states.shape
        self._projected = None

    def project(self, projection: Callable[[torch.Tensor], Any]) -> Any:
        """What the layer's `projection`, always the same, makes of the context."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return projection(self.hidden_states)
        if self._projected is None:
            self._projected = projection(self.hidden_states)
        return self._projected


class AudioXContext(LayerContext):
    """
    A context for several forward passes of one transformer, in the place of the tensor. What the transformer works out
    from the context alone (the projected context, the keys and values of cross-attention, the modulation of the
    MMDiT's blocks) is worked out in the first pass and kept here for those that follow.

    It goes with one transformer, its weights, adapters and their scale, and its precision: where one of them changes, a
    new one is needed.

    Args:
        hidden_states (`torch.Tensor` of shape `[B, S, cross_attention_input_dim]`): the context. It may have fewer rows
            than there are latents if the transformer's `null_context_vanishes`: then it is that of the last ones, and
            the first ones have the null context.
    """

    def layers(self, embed: Callable[[torch.Tensor], torch.Tensor], num_layers: int) -> list[LayerContext]:
        """The context, projected by `embed`, for each layer."""

        def split(hidden_states: torch.Tensor) -> list[LayerContext]:
            embedded = embed(hidden_states)
            return [LayerContext(embedded) for _ in range(num_layers)]

        return self.project(split)


def project(context: torch.Tensor | LayerContext, projection: Callable[[torch.Tensor], Any]) -> Any:
    """What `projection` makes of a context, which a `LayerContext` keeps."""
    return context.project(projection) if isinstance(context, LayerContext) else projection(context)


def layer_contexts(
    context: torch.Tensor | AudioXContext, embed: Callable[[torch.Tensor], torch.Tensor], num_layers: int
) -> list[torch.Tensor] | list[LayerContext]:
    """The context, projected by `embed`, for each layer of a transformer."""
    if isinstance(context, AudioXContext):
        return context.layers(embed, num_layers)
    return [embed(context)] * num_layers


def check_rows(
    transformer: nn.Module, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | AudioXContext
) -> None:
    """Raise `ValueError` unless the context has a row for each sample, or may have fewer (see [`AudioXContext`])."""
    rows, samples = encoder_hidden_states.shape[0], hidden_states.shape[0]
    fewer = isinstance(encoder_hidden_states, AudioXContext) and rows < samples and transformer.null_context_vanishes
    if rows != samples and not fewer:
        raise ValueError(f"`encoder_hidden_states` has {rows} rows for the {samples} of `hidden_states`.")
