"""The multimodal diffusion transformer of AudioX-MAF-MMDiT and AudioX-Turbo."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale

from .attention_audiox import AudioXAttentionMixin
from .context_audiox import AudioXContext, check_rows, layer_contexts, run_offloaded
from .model_audiox import AudioXModelMixin
from .parallel_audiox import convolve_tokens, gather_features
from .transformer_audiox import AudioXFourierEmbedding


def rms_norm_heads(hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply RMS norm over the last axis, without a learned scale."""
    return F.rms_norm(hidden_states, hidden_states.shape[-1:], eps=1e-6)


class AudioXMMAttnProcessor:
    """Scaled dot-product attention of RMS-normalized queries and keys, with diffusers' attention backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "AudioXMMAttention", hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))

        query = apply_rotary_emb(rms_norm_heads(query), rotary_emb, use_real_unbind_dim=-1, sequence_dim=1)
        key = apply_rotary_emb(rms_norm_heads(key), rotary_emb, use_real_unbind_dim=-1, sequence_dim=1)

        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = gather_features(attn.to_q, hidden_states.flatten(2, 3).to(query.dtype))
        return convolve_tokens(attn.to_out, hidden_states, self._parallel_config)


class AudioXMMAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with interleaved RoPE over the whole head, and a convolution as output projection."""

    _default_processor_cls = AudioXMMAttnProcessor
    _available_processors = [AudioXMMAttnProcessor]

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.use_bias = True
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Conv1d(dim, dim, 3, padding=1)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.processor(self, hidden_states, rotary_emb)


class AudioXMMTransformerBlock(nn.Module):
    """Self-attention and a convolutional SwiGLU, both modulated by one condition token per position."""

    def __init__(self, dim: int, heads: int, ff_inner_dim: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn1 = AudioXMMAttention(dim, heads)
        self.to_time = nn.Linear(dim, dim, bias=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ff_gate = nn.Conv1d(dim, ff_inner_dim, 3, padding=1, bias=False)
        self.ff_in = nn.Conv1d(dim, ff_inner_dim, 3, padding=1, bias=False)
        self.ff_out = nn.Conv1d(ff_inner_dim, dim, 3, padding=1, bias=False)

    @run_offloaded
    def project_context(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        """Project condition tokens `[B, L + 1, D]` to shifts, scales and gates per position, `[B, L + 1, 6 D]`."""
        return (self.modulate(encoder_hidden_states),)

    def modulate(self, context: torch.Tensor) -> torch.Tensor:
        return gather_features(self.modulation, self.modulation(F.silu(context)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor],
        time_token: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        if isinstance(encoder_hidden_states, tuple):
            (modulation,) = encoder_hidden_states
        else:
            modulation = self.modulate(encoder_hidden_states)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = modulation.chunk(6, dim=-1)

        normed = self.norm1(hidden_states) * (1 + scale_attn) + shift_attn
        hidden_states = hidden_states + gate_attn * self.attn1(normed, rotary_emb)

        # Attention to a single token returns its value for any query. The released models use the normalized key of
        # the time token as its value.
        time_value = gather_features(self.to_time, self.to_time(time_token))
        time_value = rms_norm_heads(time_value.unflatten(-1, (self.heads, -1))).flatten(-2)
        hidden_states = hidden_states + time_value[:, None]

        normed = self.norm2(hidden_states) * (1 + scale_ff) + shift_ff
        parallel_config = self.attn1.processor._parallel_config
        gate = F.silu(convolve_tokens(self.ff_gate, normed, parallel_config))
        gated = gate * convolve_tokens(self.ff_in, normed, parallel_config)
        return hidden_states + gate_ff * convolve_tokens(self.ff_out, gated, parallel_config)


class AudioXMMTransformer2DModel(
    AudioXModelMixin, ConfigMixin, AudioXAttentionMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin
):
    r"""
    The multimodal diffusion transformer of AudioX-MAF-MMDiT (arXiv 2503.10522v3) and AudioX-Turbo (arXiv 2606.12555).
    The context is projected to one condition token per latent frame, which modulates every block.

    Parameters:
        sample_size (`int`): Number of latent frames in one window, fixed by the weights.
        in_channels (`int`): Number of latent channels.
        num_layers (`int`): Number of blocks.
        num_attention_heads, attention_head_dim (`int`): Number of heads, and their width.
        cross_attention_input_dim (`int`): Width of the context.
        num_context_tokens (`int`): Number of context tokens, fixed by the weights.
        time_proj_dim (`int`): Number of Fourier features of the time.
        ff_inner_dim (`int`): Hidden width of the feed-forward.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["AudioXMMTransformerBlock"]
    _repeated_blocks = ["AudioXMMTransformerBlock"]
    _skip_layerwise_casting_patterns = ["time_proj", "preprocess_conv", "postprocess_conv", "norm"]
    _keep_in_fp32_modules = ["time_proj"]
    # Splits the tokens, including the time token, from the first block to the output, and the condition tokens with
    # them. Convolutions exchange the tokens at the edges.
    _cp_plan = {
        "context_to_positions": {0: ContextParallelInput(split_dim=2, expected_dims=3, split_output=True)},
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "transformer_blocks.*": {"rotary_emb": [ContextParallelInput(split_dim=0, expected_dims=2)] * 2},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    # diffusers can split linear layers only, so each process has whole convolutions.
    _tp_plan = {
        "transformer_blocks.*.attn1.to_q": "colwise",
        "transformer_blocks.*.attn1.to_k": "colwise",
        "transformer_blocks.*.attn1.to_v": "colwise",
        "transformer_blocks.*.modulation": "colwise",
        "transformer_blocks.*.to_time": "colwise",
    }

    @register_to_config
    def __init__(
        self,
        sample_size: int = 236,
        in_channels: int = 64,
        num_layers: int = 24,
        num_attention_heads: int = 64,
        attention_head_dim: int = 24,
        cross_attention_input_dim: int = 768,
        num_context_tokens: int = 384,
        time_proj_dim: int = 256,
        ff_inner_dim: int = 4096,
    ):
        super().__init__()
        inner_dim = num_attention_heads * attention_head_dim

        self.time_proj = AudioXFourierEmbedding(time_proj_dim)
        self.time_embed = TimestepEmbedding(time_proj_dim, inner_dim)
        self.context_embed = nn.Linear(cross_attention_input_dim, inner_dim)
        self.context_to_positions = nn.Linear(num_context_tokens, sample_size + 1)

        self.preprocess_conv = nn.Conv1d(in_channels, in_channels, 1, bias=False)
        self.proj_in = nn.Linear(in_channels, inner_dim, bias=False)
        self.transformer_blocks = nn.ModuleList(
            [AudioXMMTransformerBlock(inner_dim, num_attention_heads, ff_inner_dim) for _ in range(num_layers)]
        )
        self.proj_out = nn.Linear(inner_dim, in_channels, bias=False)
        self.postprocess_conv = nn.Conv1d(in_channels, in_channels, 1, bias=False)

        self.gradient_checkpointing = False

    @property
    def null_context_vanishes(self) -> bool:
        """Always `False`, because the condition tokens of a context of zeros are not zero."""
        return False

    @run_offloaded
    @apply_lora_scale("attention_kwargs")
    def project_context(
        self, encoder_hidden_states: torch.Tensor, attention_kwargs: dict[str, Any] | None = None
    ) -> AudioXContext:
        """
        See [`AudioXTransformer2DModel.project_context`]. The context has a row for each row of the latents.

        Raises:
            ValueError: The context does not have `num_context_tokens` tokens.
        """
        self._check_tokens(encoder_hidden_states)
        tokens = self._condition_tokens(encoder_hidden_states)
        return AudioXContext(tuple(block.project_context(tokens) for block in self.transformer_blocks))

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
            hidden_states (`torch.Tensor` of shape `[B, in_channels, sample_size]`): Noisy latents.
            timestep (`torch.Tensor` of shape `[B]`): Continuous time from 0 (clean) to 1 (noise).
            encoder_hidden_states (`torch.Tensor` of shape `[B, num_context_tokens, cross_attention_input_dim]`):
                Context from the conditioner, or the result of `project_context`. All zeros is the null context of
                classifier-free guidance.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales the LoRA layers.
            return_dict (`bool`): Whether to return a [`~models.modeling_outputs.Transformer2DModelOutput`].

        Returns:
            The predicted velocity, with the shape of `hidden_states`.

        Raises:
            ValueError: If the shapes of `hidden_states` and `encoder_hidden_states` are not those above.
        """
        config = self.config
        if hidden_states.shape[-1] != config.sample_size:
            raise ValueError(
                f"`hidden_states` must have {config.sample_size} latent frames, got {hidden_states.shape[-1]}."
            )
        if isinstance(encoder_hidden_states, torch.Tensor):
            self._check_tokens(encoder_hidden_states)
        check_rows(self, hidden_states, encoder_hidden_states)
        hidden_states = hidden_states + self.preprocess_conv(hidden_states)
        hidden_states = self.proj_in(hidden_states.transpose(1, 2))

        time_token = self.time_embed(self.time_proj(timestep).to(hidden_states.dtype))
        hidden_states = torch.cat((time_token[:, None], hidden_states), dim=1)
        contexts = layer_contexts(self, encoder_hidden_states, self._condition_tokens)

        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        rotary_emb = get_1d_rotary_pos_embed(config.attention_head_dim, positions, use_real=True)

        for block, context in zip(self.transformer_blocks, contexts):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(
                    block, hidden_states, context, time_token, rotary_emb
                )
            else:
                hidden_states = block(hidden_states, context, time_token, rotary_emb)

        hidden_states = self.proj_out(hidden_states)[:, 1:].transpose(1, 2)
        hidden_states = hidden_states + self.postprocess_conv(hidden_states)

        if not return_dict:
            return (hidden_states,)
        return Transformer2DModelOutput(sample=hidden_states)

    def _check_tokens(self, context: torch.Tensor) -> None:
        if context.shape[1] != self.config.num_context_tokens:
            raise ValueError(
                f"`encoder_hidden_states` must have {self.config.num_context_tokens} tokens, got {context.shape[1]}."
            )

    def _condition_tokens(self, context: torch.Tensor) -> torch.Tensor:
        """Project the context to one token per position, `[B, L + 1, D]`."""
        return self.context_to_positions(self.context_embed(context).transpose(1, 2)).transpose(1, 2)
