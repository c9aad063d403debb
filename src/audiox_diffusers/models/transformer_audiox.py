"""The diffusion transformer of AudioX: Stable Audio's DiT with a prepended time token."""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks.tensor_parallel import PackedColwiseParallel
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.activations import SwiGLU
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale

from .attention_audiox import AudioXAttention, AudioXAttentionMixin
from .context_audiox import AudioXContext, check_rows, layer_contexts, run_offloaded
from .model_audiox import AudioXModelMixin


class AudioXFourierEmbedding(nn.Module):
    """Learned Fourier features of a time in 0..1, `[B] -> [B, embedding_dim]`. Float32, cosines first."""

    def __init__(self, embedding_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(embedding_dim // 2, 1))

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        # Autocast would compute a matrix product in half precision.
        angles = 2.0 * math.pi * timestep.float()[:, None] * self.weight.float().T
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class AudioXSwiGLU(SwiGLU):
    """
    diffusers' SwiGLU, computed in place without gradients. On a CPU, allocating two more tensors of this size would
    cost a tenth of the block's time.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states, gate = self.proj(hidden_states).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return hidden_states * F.silu(gate)
        return F.silu(gate, inplace=True).mul_(hidden_states)


class AudioXFeedForward(nn.Module):
    """SwiGLU and a linear layer, both with biases. Weights have the names of diffusers' `FeedForward`."""

    def __init__(self, dim: int, mult: int):
        super().__init__()
        self.net = nn.ModuleList([AudioXSwiGLU(dim, mult * dim), nn.Dropout(0.0), nn.Linear(mult * dim, dim)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for module in self.net:
            hidden_states = module(hidden_states)
        return hidden_states


class AudioXTransformerBlock(nn.Module):
    """Pre-norm self-attention with RoPE, cross-attention with grouped key-value heads, SwiGLU feed-forward."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, cross_attention_dim: int, ff_mult: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5, bias=False)
        self.attn1 = AudioXAttention(dim, heads, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, bias=False)
        self.attn2 = AudioXAttention(dim, heads, head_dim, kv_heads=kv_heads, cross_attention_dim=cross_attention_dim)
        self.norm3 = nn.LayerNorm(dim, eps=1e-5, bias=False)
        self.ff = AudioXFeedForward(dim, ff_mult)

    @run_offloaded
    def project_context(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project an embedded context `[B, S, D]` to the keys and values of cross-attention."""
        return self.attn2.keys_and_values(encoder_hidden_states)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states), rotary_emb=rotary_emb)
        if isinstance(encoder_hidden_states, torch.Tensor):
            encoder_hidden_states = self.attn2.keys_and_values(encoder_hidden_states)
        # Cross-attention to the null context is zero.
        null_rows = hidden_states.shape[0] - encoder_hidden_states[0].shape[0]
        attended = self.attn2(self.norm2(hidden_states[null_rows:]), encoder_hidden_states)
        hidden_states = hidden_states + F.pad(attended, (0, 0, 0, 0, null_rows, 0))
        return hidden_states + self.ff(self.norm3(hidden_states))


class AudioXTransformer2DModel(
    AudioXModelMixin, ConfigMixin, AudioXAttentionMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin
):
    r"""
    The diffusion transformer of AudioX and AudioX-MAF (arXiv 2503.10522, section 3.1), with the backbone of Stable
    Audio Open (arXiv 2407.14358). It predicts the velocity `v` of audio latents.

    Parameters:
        sample_size (`int`): Number of latent frames in one window.
        in_channels (`int`): Number of latent channels.
        num_layers (`int`): Number of blocks.
        attention_head_dim (`int`): Width of a head. RoPE rotates the first `max(attention_head_dim // 2, 32)`
            dimensions.
        num_attention_heads (`int`): Number of query heads.
        num_key_value_attention_heads (`int`): Number of key-value heads in cross-attention, a divisor of
            `num_attention_heads`.
        cross_attention_input_dim (`int`): Width of the input context.
        cross_attention_dim (`int`): Width of the projected context.
        time_proj_dim (`int`): Number of Fourier features of the time.
        ff_mult (`int`): Hidden width of the feed-forward, as a multiple of the model's width.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["AudioXTransformerBlock"]
    _repeated_blocks = ["AudioXTransformerBlock"]
    _skip_layerwise_casting_patterns = ["time_proj", "preprocess_conv", "postprocess_conv", "norm"]
    _keep_in_fp32_modules = ["time_proj"]
    # Splits the tokens, including the time token, from the first block to the output, but not the context.
    _cp_plan = {
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "transformer_blocks.*": {"rotary_emb": [ContextParallelInput(split_dim=0, expected_dims=2)] * 2},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    _tp_plan = {
        "transformer_blocks.*.attn1.to_q": "colwise",
        "transformer_blocks.*.attn1.to_k": "colwise",
        "transformer_blocks.*.attn1.to_v": "colwise",
        "transformer_blocks.*.attn1.to_out.0": "rowwise",
        "transformer_blocks.*.attn2.to_q": "colwise",
        "transformer_blocks.*.attn2.to_k": "colwise",
        "transformer_blocks.*.attn2.to_v": "colwise",
        "transformer_blocks.*.attn2.to_out.0": "rowwise",
        "transformer_blocks.*.ff.net.0.proj": PackedColwiseParallel([1, 1]),
        "transformer_blocks.*.ff.net.2": "rowwise",
    }

    @register_to_config
    def __init__(
        self,
        sample_size: int = 236,
        in_channels: int = 64,
        num_layers: int = 24,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        num_key_value_attention_heads: int = 12,
        cross_attention_input_dim: int = 768,
        cross_attention_dim: int = 768,
        time_proj_dim: int = 256,
        ff_mult: int = 4,
    ):
        super().__init__()
        inner_dim = num_attention_heads * attention_head_dim
        self.rotary_dim = max(attention_head_dim // 2, 32)
        if self.rotary_dim > attention_head_dim:
            raise ValueError(f"`attention_head_dim` must be at least {self.rotary_dim}, got {attention_head_dim}.")

        self.time_proj = AudioXFourierEmbedding(time_proj_dim)
        self.time_embed = TimestepEmbedding(time_proj_dim, inner_dim)
        self.context_embed = TimestepEmbedding(cross_attention_input_dim, cross_attention_dim, sample_proj_bias=False)

        self.preprocess_conv = nn.Conv1d(in_channels, in_channels, 1, bias=False)
        self.proj_in = nn.Linear(in_channels, inner_dim, bias=False)
        self.transformer_blocks = nn.ModuleList(
            [
                AudioXTransformerBlock(
                    inner_dim,
                    num_attention_heads,
                    num_key_value_attention_heads,
                    attention_head_dim,
                    cross_attention_dim,
                    ff_mult,
                )
                for _ in range(num_layers)
            ]
        )
        self.proj_out = nn.Linear(inner_dim, in_channels, bias=False)
        self.postprocess_conv = nn.Conv1d(in_channels, in_channels, 1, bias=False)

        self.gradient_checkpointing = False

    @property
    def null_context_vanishes(self) -> bool:
        """
        Whether cross-attention to a context of zeros is exactly zero. It is, unless an adapter adds a bias to a
        projection of the context.
        """
        modules = [self.context_embed, *(block.attn2 for block in self.transformer_blocks)]
        return not any(name.endswith("bias") for module in modules for name, _ in module.named_parameters())

    @run_offloaded
    @apply_lora_scale("attention_kwargs")
    def project_context(
        self, encoder_hidden_states: torch.Tensor, attention_kwargs: dict[str, Any] | None = None
    ) -> AudioXContext:
        """
        Compute what depends on the context alone, to reuse it over many steps.

        Args:
            encoder_hidden_states (`torch.Tensor` of shape `[B, S, cross_attention_input_dim]`): Context. If
                `null_context_vanishes`, it may have fewer rows than the latents. It then belongs to the last rows,
                and the first rows get the null context.
            attention_kwargs (`dict`, *optional*): As for `forward`.

        Returns:
            `AudioXContext`: The context for `forward`.
        """
        embedded = self.context_embed(encoder_hidden_states)
        return AudioXContext(tuple(block.project_context(embedded) for block in self.transformer_blocks))

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | AudioXContext,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        r"""
        Args:
            hidden_states (`torch.Tensor` of shape `[B, in_channels, L]`): Noisy latents of any length `L`.
            timestep (`torch.Tensor` of shape `[B]`): Continuous time from 0 (clean) to 1 (noise).
            encoder_hidden_states (`torch.Tensor` of shape `[B, S, cross_attention_input_dim]`): Context from the
                conditioner, or the result of `project_context`. All zeros is the null context of classifier-free
                guidance.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales the LoRA layers.
            return_dict (`bool`): Whether to return a [`~models.modeling_outputs.Transformer2DModelOutput`].

        Returns:
            The predicted velocity, with the shape of `hidden_states`.

        Raises:
            ValueError: If the context does not have `B` rows. An [`AudioXContext`] may have fewer if
                `null_context_vanishes`.
        """
        check_rows(self, hidden_states, encoder_hidden_states)
        hidden_states = hidden_states + self.preprocess_conv(hidden_states)
        hidden_states = self.proj_in(hidden_states.transpose(1, 2))

        time_token = self.time_embed(self.time_proj(timestep).to(hidden_states.dtype))
        hidden_states = torch.cat((time_token[:, None], hidden_states), dim=1)
        contexts = layer_contexts(self, encoder_hidden_states, self.context_embed)

        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        rotary_emb = get_1d_rotary_pos_embed(self.rotary_dim, positions, use_real=True, repeat_interleave_real=False)

        for block, context in zip(self.transformer_blocks, contexts):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, context, rotary_emb)
            else:
                hidden_states = block(hidden_states, context, rotary_emb)

        hidden_states = self.proj_out(hidden_states)[:, 1:].transpose(1, 2)
        hidden_states = hidden_states + self.postprocess_conv(hidden_states)

        if not return_dict:
            return (hidden_states,)
        return Transformer2DModelOutput(sample=hidden_states)
