"""Embeddings of text, video and audio -> one context for the transformer."""

import warnings
from dataclasses import dataclass

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torchaudio.functional import melscale_fbanks

from .attention_audiox import AudioXEncoderBlock
from .fusion_maf import AudioXFusion
from .model_audiox import AudioXModelMixin


@dataclass
class AudioXConditionerOutput(BaseOutput):
    """
    Output of [`AudioXConditioner`].

    Args:
        condition_embeds (`torch.Tensor` of shape `[B, tokens, D]`): Context, in the order video, text, audio. With
            fusion, the order is text, video, audio.
        video_tokens, text_tokens, audio_tokens (`torch.Tensor` of shape `[B, tokens, D]`): Tokens of each modality
            before fusion.
    """

    # accelerate's hooks rebuild outputs from a dictionary, which needs defaults.
    condition_embeds: torch.Tensor
    video_tokens: torch.Tensor | None = None
    text_tokens: torch.Tensor | None = None
    audio_tokens: torch.Tensor | None = None


def tokens_or_empty(tokens: torch.Tensor, embeds: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Replace the tokens of samples whose `embeds` are all zero by the learned `empty` tokens `[1, N, D]`."""
    absent = (embeds == 0).flatten(1).all(dim=1)
    return torch.where(absent[:, None, None], empty.to(tokens.dtype), tokens)


class AudioXVideoProjection(nn.Module):
    """
    CLIP tokens of the frames `[B, T, Q, D]` -> video tokens `[B, N, D]`.

    A transformer runs over time at each of the `Q` positions. A linear layer then maps the `T * Q` tokens to `N`. The
    released weights expect the buffer `[T * Q, D]` to be **reshaped** to `[D, T * Q]`, not transposed, and the result
    `[D, N]` to be reshaped to `[N, D]`.

    With `num_sync_tokens`, Synchformer tokens `[B, num_sync_tokens, D]` are projected the same way and added.
    """

    def __init__(
        self,
        dim: int,
        num_frames: int,
        num_frame_tokens: int,
        num_tokens: int,
        layers: int,
        heads: int,
        num_sync_tokens: int | None,
    ):
        super().__init__()
        self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, dim))
        self.temporal_blocks = nn.ModuleList([AudioXEncoderBlock(dim, heads, 64) for _ in range(layers)])
        self.norm_out = nn.LayerNorm(dim)
        self.proj = nn.Linear(num_frames * num_frame_tokens, num_tokens)
        self.empty_embedding = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.proj_sync = None
        if num_sync_tokens is not None:
            self.proj_sync = nn.Linear(num_sync_tokens, num_tokens)
            self.sync_weight = nn.Parameter(torch.zeros(()))

    def forward(
        self, video_embeds: torch.Tensor | None, sync_embeds: torch.Tensor | None, batch_size: int
    ) -> torch.Tensor:
        if video_embeds is None:
            return self.empty_embedding.expand(batch_size, -1, -1)
        _, num_frames, num_frame_tokens, dim = video_embeds.shape

        hidden_states = video_embeds.transpose(1, 2).flatten(0, 1) + self.temporal_embedding
        for block in self.temporal_blocks:
            hidden_states = block(hidden_states)
        hidden_states = self.norm_out(hidden_states)
        hidden_states = hidden_states.unflatten(0, (batch_size, num_frame_tokens)).transpose(1, 2)

        tokens = self.proj(hidden_states.reshape(batch_size, dim, -1)).reshape(batch_size, -1, dim)
        if self.proj_sync is not None:
            if sync_embeds is None:
                sync_embeds = tokens.new_zeros(batch_size, self.proj_sync.in_features, dim)
            sync_tokens = self.proj_sync(sync_embeds.reshape(batch_size, dim, -1)).reshape(batch_size, -1, dim)
            tokens = tokens + self.sync_weight * sync_tokens
        return tokens_or_empty(tokens, video_embeds, self.empty_embedding)


class AudioXAudioProjection(nn.Module):
    """VAE latents `[B, C, N]` -> audio tokens `[B, N, D]`, or learned tokens for samples without audio."""

    def __init__(self, dim: int, latent_channels: int, num_tokens: int):
        super().__init__()
        self.proj = nn.Linear(latent_channels, dim)
        self.empty_embedding = nn.Parameter(torch.zeros(1, num_tokens, dim))

    def forward(self, audio_latents: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        if audio_latents is None:
            return self.empty_embedding.expand(batch_size, -1, -1)
        return tokens_or_empty(self.proj(audio_latents.transpose(1, 2)), audio_latents, self.empty_embedding)


class AudioXAudioResampler(nn.Module):
    """VAE latents `[B, C, L]` -> audio tokens `[B, N, D]`. Samples without audio use the latents of silence."""

    def __init__(self, dim: int, latent_channels: int, num_latents: int, num_tokens: int):
        super().__init__()
        self.proj_time = nn.Linear(num_latents, num_tokens)
        self.proj = nn.Linear(latent_channels, dim)

    def forward(self, audio_latents: torch.Tensor) -> torch.Tensor:
        return self.proj(self.proj_time(audio_latents).transpose(1, 2))


class AudioXMelProjection(nn.Module):
    """
    Waveforms `[B, channels, samples]` -> audio tokens `[B, 1 + samples // hop_length, D]`, one per frame of a log-mel
    spectrogram. Samples without audio use silence.

    The released models apply filters for 24 kHz to audio at 44.1 kHz, and their weights expect this.
    """

    def __init__(self, dim: int, num_mels: int, n_fft: int, hop_length: int, sampling_rate: int):
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.filters = mel_filters(num_mels, n_fft, sampling_rate)
        self.proj = nn.Linear(num_mels, dim)

    def forward(self, audio_waveform: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        log_mel = log_mel_spectrogram(audio_waveform, self.filters, self.n_fft, self.hop_length)
        return self.proj(log_mel.transpose(1, 2).to(dtype))


def mel_filters(num_mels: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """
    Build triangular filters of height 1, evenly spaced on the HTK mel scale from 0 to `sampling_rate / 2`.

    Returns:
        Float32 `[n_fft // 2 + 1, num_mels]`, on the CPU even if the default device is another one.
    """
    default_dtype = torch.get_default_dtype()
    # `from_pretrained` sets the default dtype to the requested one.
    torch.set_default_dtype(torch.float32)
    try:
        with warnings.catch_warnings(), torch.device("cpu"):
            # The lowest released bands are so narrow that they contain no frequency bin. The weights expect this.
            warnings.simplefilter("ignore", UserWarning)
            return melscale_fbanks(n_fft // 2 + 1, 0.0, sampling_rate / 2, num_mels, sampling_rate)
    finally:
        torch.set_default_dtype(default_dtype)


def log_mel_spectrogram(waveform: torch.Tensor, filters: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """
    Compute the natural logarithm of the mel magnitudes of the mono mix, clamped to at least 1e-5.

    Args:
        waveform: Waveform `[B, channels, samples]`.
        filters: Filters `[n_fft // 2 + 1, num_mels]` from [`mel_filters`].
        n_fft, hop_length: Length of the Hann window, and step between centered frames, in samples.

    Returns:
        Float32 `[B, num_mels, 1 + samples // hop_length]`.
    """
    mono = waveform.float().mean(dim=1)
    window = torch.hann_window(n_fft, device=mono.device)
    magnitudes = torch.stft(mono, n_fft, hop_length, window=window, return_complex=True).abs()
    return (magnitudes.transpose(1, 2) @ filters.to(mono.device)).transpose(1, 2).clamp(min=1e-5).log()


AUDIO_TYPES = ("audio_autoencoder", "audio_autoencoder_v2", "mel_spec")


class AudioXConditioner(AudioXModelMixin, ConfigMixin, PeftAdapterMixin):
    r"""
    Project the embeddings of each modality to tokens of one width and join them into the context of the transformer
    (arXiv 2503.10522, section 3.2). Pass zeros for a modality that a sample lacks, or `None` if the whole batch lacks
    it. Models with learned empty tokens use those in place of missing video or audio.

    Parameters:
        condition_dim (`int`): Width of the tokens, and of the embeddings of frames and text.
        num_text_tokens (`int`): Number of text tokens, including padding.
        num_video_frames (`int`): Number of frames in one window, at `video_fps`.
        num_frame_tokens (`int`): Number of tokens that the image encoder returns per frame, including the class token.
        num_video_tokens (`int`): Number of video tokens in the context.
        num_temporal_layers, num_temporal_heads (`int`): Number of layers of the transformer over the frames, and of
            its heads, which have width 64.
        video_fps (`float`): Frame rate that the weights expect.
        num_sync_tokens (`int`, *optional*): Number of Synchformer tokens in one window. `None` for models without
            Synchformer.
        audio_type (`str`): How audio prompts become tokens. `"audio_autoencoder"`: one token per latent frame.
            `"audio_autoencoder_v2"`: latent frames resampled to `num_audio_tokens`. `"mel_spec"`: one token per frame
            of a mel spectrogram with `num_mels` bands.
        latent_channels (`int`): Number of latent channels of an audio prompt.
        num_audio_latents (`int`): Number of latent frames in an audio prompt.
        num_audio_tokens (`int`): Number of audio tokens in the context, for `"audio_autoencoder_v2"`.
        num_mels, mel_n_fft, mel_hop_length, mel_sampling_rate (`int`): Mel spectrogram for `"mel_spec"`, see
            `log_mel_spectrogram`.
        audio_prompt_samples (`int`): Number of samples in an audio prompt.
        num_fusion_experts (`int`, *optional*): Number of fusion experts per modality. `None` for models without
            fusion.
        num_fusion_heads, num_fusion_layers (`int`): Number of heads and layers of the fusion.
    """

    _no_split_modules = ["AudioXEncoderBlock", "AudioXAudioProjection"]
    _repeated_blocks = ["AudioXEncoderBlock"]
    _skip_layerwise_casting_patterns = ["temporal_embedding", "empty_embedding", "experts", "norm"]

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
        num_sync_tokens: int | None = None,
        audio_type: str = "audio_autoencoder",
        latent_channels: int = 64,
        num_audio_latents: int = 215,
        num_audio_tokens: int = 128,
        num_mels: int = 256,
        mel_n_fft: int = 1024,
        mel_hop_length: int = 256,
        mel_sampling_rate: int = 24000,
        audio_prompt_samples: int = 441000,
        num_fusion_experts: int | None = None,
        num_fusion_heads: int = 24,
        num_fusion_layers: int = 8,
    ):
        super().__init__()
        if audio_type not in AUDIO_TYPES:
            raise ValueError(f"`audio_type` must be one of {', '.join(AUDIO_TYPES)}, got {audio_type!r}.")
        self.video_proj = AudioXVideoProjection(
            condition_dim,
            num_video_frames,
            num_frame_tokens,
            num_video_tokens,
            num_temporal_layers,
            num_temporal_heads,
            num_sync_tokens,
        )
        if audio_type == "audio_autoencoder":
            self.audio_proj = AudioXAudioProjection(condition_dim, latent_channels, num_audio_latents)
        elif audio_type == "audio_autoencoder_v2":
            self.audio_proj = AudioXAudioResampler(condition_dim, latent_channels, num_audio_latents, num_audio_tokens)
        else:
            self.audio_proj = AudioXMelProjection(
                condition_dim, num_mels, mel_n_fft, mel_hop_length, mel_sampling_rate
            )
        self.fusion = None
        if num_fusion_experts is not None:
            self.fusion = AudioXFusion(condition_dim, num_fusion_experts, num_fusion_heads, num_fusion_layers)

    def forward(
        self,
        text_embeds: torch.Tensor | None = None,
        video_embeds: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        sync_embeds: torch.Tensor | None = None,
        audio_waveform: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> AudioXConditionerOutput | tuple[torch.Tensor, ...]:
        r"""
        Args:
            text_embeds (`torch.Tensor` of shape `[B, num_text_tokens, condition_dim]`, *optional*): Last hidden state
                of the text encoder, with zeros at padding.
            video_embeds (`torch.Tensor` of shape `[B, num_video_frames, num_frame_tokens, condition_dim]`,
                *optional*): Last hidden state of the image encoder for each frame.
            audio_latents (`torch.Tensor` of shape `[B, latent_channels, num_audio_latents]`, *optional*): Latents of
                the audio prompt. `"audio_autoencoder_v2"` requires them, and uses the latents of silence for no audio.
            sync_embeds (`torch.Tensor` of shape `[B, num_sync_tokens, condition_dim]`, *optional*): Synchformer
                tokens, or zeros without video.
            audio_waveform (`torch.Tensor` of shape `[B, channels, samples]`, *optional*): Waveform of the audio
                prompt, for `"mel_spec"`. Defaults to silence.
            return_dict (`bool`): Whether to return an [`AudioXConditionerOutput`].

        Returns:
            An [`AudioXConditionerOutput`], or a tuple of its values with the context first.

        Raises:
            ValueError: If no modality is given, if the model does not use a given one, or if a shape is not the one
                above.
        """
        embeds = {
            "text_embeds": text_embeds,
            "video_embeds": video_embeds,
            "audio_latents": audio_latents,
            "sync_embeds": sync_embeds,
            "audio_waveform": audio_waveform,
        }
        batch_size = self._check_shapes(embeds)

        video_tokens = self.video_proj(video_embeds, sync_embeds, batch_size)
        if text_embeds is None:
            text_embeds = video_tokens.new_zeros(batch_size, self.config.num_text_tokens, self.config.condition_dim)
        text_tokens = text_embeds
        if self.config.audio_type == "audio_autoencoder":
            audio_tokens = self.audio_proj(audio_latents, batch_size)
        elif self.config.audio_type == "audio_autoencoder_v2":
            audio_tokens = self.audio_proj(audio_latents)
        else:
            if audio_waveform is None:
                audio_waveform = video_tokens.new_zeros(batch_size, 1, self.config.audio_prompt_samples)
            audio_tokens = self.audio_proj(audio_waveform, text_embeds.dtype)

        if self.fusion is None:
            fused = (video_tokens, text_tokens, audio_tokens)
        else:
            # The released models swap text and video here.
            fused = self.fusion(text_tokens, video_tokens, audio_tokens)
        condition_embeds = torch.cat(fused, dim=1)

        if not return_dict:
            return (condition_embeds, video_tokens, text_tokens, audio_tokens)
        return AudioXConditionerOutput(condition_embeds, video_tokens, text_tokens, audio_tokens)

    def _check_shapes(self, embeds: dict[str, torch.Tensor | None]) -> int:
        """Check the shapes and return the batch size."""
        config = self.config
        shapes = {
            "text_embeds": (config.num_text_tokens, config.condition_dim),
            "video_embeds": (config.num_video_frames, config.num_frame_tokens, config.condition_dim),
        }
        if config.num_sync_tokens is not None:
            shapes["sync_embeds"] = (config.num_sync_tokens, config.condition_dim)
        if config.audio_type == "mel_spec":
            shapes["audio_waveform"] = ("channels", "samples")
        else:
            shapes["audio_latents"] = (config.latent_channels, config.num_audio_latents)

        given = {name: tensor for name, tensor in embeds.items() if tensor is not None}
        batch_sizes = {tensor.shape[0] for tensor in given.values()}
        if len(batch_sizes) != 1:
            raise ValueError(
                f"Pass at least one of {', '.join(f'`{name}`' for name in shapes)}, all with one batch size, got batch"
                f" sizes {sorted(batch_sizes)}."
            )
        for name, tensor in given.items():
            if name not in shapes:
                raise ValueError(f"This model does not use `{name}`.")
            shape = shapes[name]
            if tensor.ndim != 1 + len(shape) or any(
                isinstance(size, int) and size != actual for size, actual in zip(shape, tensor.shape[1:], strict=True)
            ):
                raise ValueError(f"`{name}` must have the shape {('B', *shape)}, got {tuple(tensor.shape)}.")
        if config.audio_type == "audio_autoencoder_v2" and "audio_latents" not in given:
            raise ValueError("This model requires `audio_latents`. Pass the latents of silence for no audio.")
        return batch_sizes.pop()
