"""From the embeddings of text, video and audio to the one context that the transformer attends to."""

from dataclasses import dataclass

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from .attention_audiox import AudioXAttention


@dataclass
class AudioXConditionerOutput(BaseOutput):
    """
    Output of [`AudioXConditioner`].

    Args:
        condition_embeds (`torch.Tensor` of shape `[B, num_video_tokens + num_text_tokens + num_audio_tokens, D]`):
            the context: the tokens of video, text and audio, in this order.
        video_tokens, text_tokens, audio_tokens (`torch.Tensor` of shape `[B, tokens, D]`): its parts.
    """

    # With defaults, as accelerate's hooks make an output anew from one dictionary.
    condition_embeds: torch.Tensor
    video_tokens: torch.Tensor | None = None
    text_tokens: torch.Tensor | None = None
    audio_tokens: torch.Tensor | None = None


def tokens_or_empty(tokens: torch.Tensor, embeds: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """The learned `empty` tokens `[1, N, D]` for samples whose `embeds` are zero everywhere, `tokens` for others."""
    absent = (embeds == 0).flatten(1).all(dim=1)
    return torch.where(absent[:, None, None], empty.to(tokens.dtype), tokens)


class AudioXTemporalBlock(nn.Module):
    """Pre-norm self-attention over time and an exact-GELU feed-forward."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = AudioXAttention(dim, heads, head_dim, out_bias=True)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, mult=4, activation_fn="gelu")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        return hidden_states + self.ff(self.norm2(hidden_states))


class AudioXVideoProjection(nn.Module):
    """
    CLIP tokens of the frames `[B, T, Q, D]` -> video tokens `[B, N, D]`.

    A transformer over time runs at every place of the picture; then `T * Q` places become `N` tokens. The released
    weights do the latter on the buffer `[T * Q, D]` read as `D` rows of `T * Q` **in memory order, which is not its
    transpose**, and the result `[D, N]` read back as `[N, D]` in the same way. They depend on it.
    """

    def __init__(self, dim: int, num_frames: int, num_frame_tokens: int, num_tokens: int, layers: int, heads: int):
        super().__init__()
        self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, dim))
        self.temporal_blocks = nn.ModuleList([AudioXTemporalBlock(dim, heads, 64) for _ in range(layers)])
        self.norm_out = nn.LayerNorm(dim)
        self.proj = nn.Linear(num_frames * num_frame_tokens, num_tokens)
        self.empty_embedding = nn.Parameter(torch.zeros(1, num_tokens, dim))

    def forward(self, video_embeds: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        if video_embeds is None:
            return self.empty_embedding.expand(batch_size, -1, -1)
        _, num_frames, num_frame_tokens, dim = video_embeds.shape

        hidden_states = video_embeds.transpose(1, 2).flatten(0, 1) + self.temporal_embedding
        for block in self.temporal_blocks:
            hidden_states = block(hidden_states)
        hidden_states = self.norm_out(hidden_states)
        hidden_states = hidden_states.unflatten(0, (batch_size, num_frame_tokens)).transpose(1, 2)

        hidden_states = self.proj(hidden_states.reshape(batch_size, dim, num_frames * num_frame_tokens))
        tokens = hidden_states.reshape(batch_size, -1, dim)
        return tokens_or_empty(tokens, video_embeds, self.empty_embedding)


class AudioXAudioProjection(nn.Module):
    """VAE latents `[B, C, N]` -> audio tokens `[B, N, D]`."""

    def __init__(self, dim: int, latent_channels: int, num_tokens: int):
        super().__init__()
        self.proj = nn.Linear(latent_channels, dim)
        self.empty_embedding = nn.Parameter(torch.zeros(1, num_tokens, dim))

    def forward(self, audio_latents: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        if audio_latents is None:
            return self.empty_embedding.expand(batch_size, -1, -1)
        return tokens_or_empty(self.proj(audio_latents.transpose(1, 2)), audio_latents, self.empty_embedding)


class AudioXConditioner(ModelMixin, ConfigMixin):
    r"""
    Turns the embeddings of each modality into tokens of one width and joins them into the context of the transformer
    (arXiv 2503.10522, section 3.2). A modality that a sample lacks is given as zeros, or as `None` where the whole
    batch lacks it; for video and audio the learned empty tokens take its place.

    Parameters:
        condition_dim (`int`): width of the tokens, and of the frames' and the text's embeddings.
        num_text_tokens (`int`): text tokens, padding included.
        num_video_frames (`int`): frames of one window, at `video_fps`.
        num_frame_tokens (`int`): tokens that the image encoder gives for one frame, class token included.
        num_video_tokens (`int`): video tokens in the context.
        num_temporal_layers, num_temporal_heads (`int`): size of the transformer over the frames; its heads are 64
            wide.
        video_fps (`float`): frames a second that the weights expect.
        latent_channels (`int`): channels of the audio prompt's latents.
        num_audio_tokens (`int`): audio tokens in the context, one for each latent frame of the audio prompt.
        audio_prompt_samples (`int`): samples of one audio prompt before the VAE.
    """

    _no_split_modules = ["AudioXTemporalBlock", "AudioXAudioProjection"]
    _repeated_blocks = ["AudioXTemporalBlock"]
    _skip_layerwise_casting_patterns = ["temporal_embedding", "empty_embedding", "norm"]

    @register_to_config
    def __init__(
        self,
        condition_dim: int = 768,
        num_text_tokens: int = 128,
        num_video_frames: int = 50,
        num_frame_tokens: int = 50,
        num_video_tokens: int = 128,
        num_temporal_layers: int = 4,
        num_temporal_heads: int = 16,
        video_fps: float = 5.0,
        latent_channels: int = 64,
        num_audio_tokens: int = 215,
        audio_prompt_samples: int = 441000,
    ):
        super().__init__()
        self.video_proj = AudioXVideoProjection(
            condition_dim,
            num_video_frames,
            num_frame_tokens,
            num_video_tokens,
            num_temporal_layers,
            num_temporal_heads,
        )
        self.audio_proj = AudioXAudioProjection(condition_dim, latent_channels, num_audio_tokens)

    def forward(
        self,
        text_embeds: torch.Tensor | None = None,
        video_embeds: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> AudioXConditionerOutput | tuple[torch.Tensor, ...]:
        r"""
        Args:
            text_embeds (`torch.Tensor` of shape `[B, num_text_tokens, condition_dim]`, *optional*): last hidden state
                of the text encoder, zeroed at padding.
            video_embeds (`torch.Tensor` of shape `[B, num_video_frames, num_frame_tokens, condition_dim]`,
                *optional*): last hidden state of the image encoder for each frame.
            audio_latents (`torch.Tensor` of shape `[B, latent_channels, num_audio_tokens]`, *optional*): latents of
                the audio prompt.
            return_dict (`bool`): whether to return an [`AudioXConditionerOutput`].

        Returns:
            [`AudioXConditionerOutput`] or its values as a tuple, the context first.

        Raises:
            ValueError: if no modality is given, or one has another shape than the weights fix.
        """
        config = self.config
        shapes = {
            "text_embeds": (config.num_text_tokens, config.condition_dim),
            "video_embeds": (config.num_video_frames, config.num_frame_tokens, config.condition_dim),
            "audio_latents": (config.latent_channels, config.num_audio_tokens),
        }
        embeds = {"text_embeds": text_embeds, "video_embeds": video_embeds, "audio_latents": audio_latents}
        batch_sizes = {tensor.shape[0] for tensor in embeds.values() if tensor is not None}
        if len(batch_sizes) != 1:
            raise ValueError(
                "Give at least one of `text_embeds`, `video_embeds` and `audio_latents`, all of one batch size; got"
                f" batch sizes {sorted(batch_sizes)}."
            )
        for name, tensor in embeds.items():
            if tensor is not None and tensor.shape[1:] != shapes[name]:
                raise ValueError(f"`{name}` must have the shape {('B', *shapes[name])}, got {tuple(tensor.shape)}.")
        batch_size = batch_sizes.pop()

        video_tokens = self.video_proj(video_embeds, batch_size)
        audio_tokens = self.audio_proj(audio_latents, batch_size)
        text_tokens = (
            video_tokens.new_zeros(batch_size, *shapes["text_embeds"]) if text_embeds is None else text_embeds
        )
        condition_embeds = torch.cat((video_tokens, text_tokens, audio_tokens), dim=1)

        if not return_dict:
            return (condition_embeds, video_tokens, text_tokens, audio_tokens)
        return AudioXConditionerOutput(condition_embeds, video_tokens, text_tokens, audio_tokens)
