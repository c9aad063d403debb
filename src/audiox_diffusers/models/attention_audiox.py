"""Attention shared by all AudioX networks, with grouped key-value heads and partial rotary embeddings."""

import torch
import torch.nn as nn
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from peft.tuners.tuners_utils import BaseTunerLayer


def apply_partial_rotary_emb(hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]):
    """
    Rotate the leading dimensions of each head (RoPE, arXiv 2104.09864, halves convention).

    Args:
        hidden_states: Tensor `[batch, tokens, heads, head_dim]`.
        rotary_emb: Cosines and sines, each float32 `[tokens, rotary_dim]` with `rotary_dim <= head_dim`.

    Returns:
        The rotated tensor, with the same shape and dtype. The rotation is computed in float32.
    """
    cos, sin = (table[:, None, :] for table in rotary_emb)
    rotary_dim = cos.shape[-1]
    rotated = hidden_states[..., :rotary_dim].float()
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated.to(hidden_states.dtype), hidden_states[..., rotary_dim:]), dim=-1)


class AudioXAttentionMixin(AttentionMixin):
    """`AttentionMixin` that does not fuse projections with adapters, because they would lose them."""

    def fuse_qkv_projections(self) -> None:
        """
        Fuse the projections of each attention, see [`~models.attention.AttentionMixin.fuse_qkv_projections`].

        Raises:
            ValueError: If the model has adapters.
        """
        if any(isinstance(module, BaseTunerLayer) for module in self.modules()):
            raise ValueError("Projections with adapters cannot be fused. Call `unload_lora_weights()` first.")
        super().fuse_qkv_projections()


class AudioXAttnProcessor:
    """Scaled dot-product attention with diffusers' attention backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "AudioXAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.fused_projections and not attn.is_cross_attention:
            query, key, value = attn.to_qkv(context).chunk(3, dim=-1)
        else:
            query = attn.to_q(hidden_states)
            key, value = context if isinstance(context, tuple) else attn.keys_and_values(context)

        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))

        if rotary_emb is not None:
            query = apply_partial_rotary_emb(query, rotary_emb)
            key = apply_partial_rotary_emb(key, rotary_emb)

        # Most backends do not support grouped heads.
        if attn.kv_heads != attn.heads:
            key, value = (x.repeat_interleave(attn.heads // attn.kv_heads, dim=2) for x in (key, value))

        # Context parallelism splits the tokens, but not the context.
        parallel_config = None if attn.is_cross_attention else self._parallel_config
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=parallel_config
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        hidden_states = attn.to_out[0](hidden_states)
        return attn.to_out[1](hidden_states)


class AudioXAttention(nn.Module, AttentionModuleMixin):
    """
    Multi-head attention.

    Args:
        dim: Width of the input and of the output.
        heads, head_dim: Number of query heads, and their width.
        kv_heads: Number of key-value heads, a divisor of `heads`. Each one serves `heads // kv_heads` consecutive
            query heads. Defaults to `heads`.
        cross_attention_dim: Width of the context. `None` means self-attention.
        bias: Whether the projections to queries, keys and values have a bias.
        out_bias: Whether the output projection has a bias.
    """

    _default_processor_cls = AudioXAttnProcessor
    _available_processors = [AudioXAttnProcessor]

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        kv_heads: int | None = None,
        cross_attention_dim: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        if heads % self.kv_heads:
            raise ValueError(f"`heads` ({heads}) must be a multiple of `kv_heads` ({self.kv_heads}).")
        self.head_dim = head_dim
        self.is_cross_attention = cross_attention_dim is not None
        self.use_bias = bias

        context_dim = cross_attention_dim if self.is_cross_attention else dim
        self.to_q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.to_k = nn.Linear(context_dim, self.kv_heads * head_dim, bias=bias)
        self.to_v = nn.Linear(context_dim, self.kv_heads * head_dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, dim, bias=out_bias), nn.Dropout(0.0)])
        self.set_processor(self._default_processor_cls())

    def keys_and_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project a context `[B, S, D]` to keys and values, each `[B, S, kv_heads * head_dim]`."""
        if self.fused_projections:
            return self.to_kv(context).chunk(2, dim=-1)
        return self.to_k(context), self.to_v(context)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, rotary_emb)


class AudioXEncoderBlock(nn.Module):
    """Pre-norm self-attention, then a feed-forward with exact GELU and four times the width."""

    def __init__(self, dim: int, heads: int, head_dim: int, bias: bool = False, eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn1 = AudioXAttention(dim, heads, head_dim, bias=bias, out_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.ff = FeedForward(dim, mult=4, activation_fn="gelu")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        return hidden_states + self.ff(self.norm2(hidden_states))
