"""From the embeddings of text, video and audio to the one context that the transformer attends to."""

import warnings
from dataclasses import dataclass

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torchaudio.functional import melscale_fbanks

from .attention_audiox import AudioXEncoderBlock
from .full_tensor_adapters import FullTensorAdapterMixin
from .fusion_maf import AudioXFusion


@dataclass
class AudioXConditionerOutput(BaseOutput):
    """
    Output of [`AudioXConditioner`].

    Args:
        condition_embeds (`torch.Tensor` of shape `[B, tokens, D]`): the context. Without fusion the tokens of video,
            text and audio, in this order; with fusion those of text, video and audio, fused.
        video_tokens, text_tokens, audio_tokens (`torch.Tensor` of shape `[B, tokens, D]`): what it is made of, before
            fusion.
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


class AudioXVideoProjection(nn.Module):
    """
    CLIP tokens of the frames `[B, T, Q, D]` -> video tokens `[B, N, D]`.

    A transformer over time runs at every place of the picture; then `T * Q` places become `N` tokens. The released
    weights do the latter on the buffer `[T * Q, D]` read as `D` rows of `T * Q` **in memory order, which is not its
    transpose**, and the result `[D, N]` read back as `[N, D]` in the same way. They depend on it.

    With `num_sync_tokens`, tokens of Synchformer `[B, num_sync_tokens, D]` are projected in the same way and added.
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
    """VAE latents `[B, C, N]` -> audio tokens `[B, N, D]`, learned ones for samples without audio."""

    def __init__(self, dim: int, latent_channels: int, num_tokens: int):
        super().__init__()
        self.proj = nn.Linear(latent_channels, dim)
        self.empty_embedding = nn.Parameter(torch.zeros(1, num_tokens, dim))

    def forward(self, audio_latents: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        if audio_latents is None:
            return self.empty_embedding.expand(batch_size, -1, -1)
        return tokens_or_empty(self.proj(audio_latents.transpose(1, 2)), audio_latents, self.empty_embedding)


class AudioXAudioResampler(nn.Module):
    """VAE latents `[B, C, L]` -> audio tokens `[B, N, D]`. Samples without audio have the latents of silence."""

    def __init__(self, dim: int, latent_channels: int, num_latents: int, num_tokens: int):
        super().__init__()
        self.proj_time = nn.Linear(num_latents, num_tokens)
        self.proj = nn.Linear(latent_channels, dim)

    def forward(self, audio_latents: torch.Tensor) -> torch.Tensor:
        return self.proj(self.proj_time(audio_latents).transpose(1, 2))


class AudioXMelProjection(nn.Module):
    """
    Waveforms `[B, channels, samples]` -> audio tokens `[B, 1 + samples // hop_length, D]`, one for each frame of a
    log-mel spectrogram. Samples without audio are silent.

    The released filters are those of 24 kHz. The models are given 44.1 kHz all the same, and their weights expect it.
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
    Triangular filters of height 1, evenly spaced on the HTK mel scale from 0 to half of `sampling_rate`: float32
    `[n_fft // 2 + 1, num_mels]`, on the CPU also where a model is made on the meta device.
    """
    default_dtype = torch.get_default_dtype()
    # `from_pretrained` makes models under the dtype that is asked for.
    torch.set_default_dtype(torch.float32)
    try:
        with warnings.catch_warnings(), torch.device("cpu"):
            # The lowest of the released bands are so narrow that they fall between the frequencies; the weights
            # expect it.
            warnings.simplefilter("ignore", UserWarning)
            return melscale_fbanks(n_fft // 2 + 1, 0.0, sampling_rate / 2, num_mels, sampling_rate)
    finally:
        torch.set_default_dtype(default_dtype)


def log_mel_spectrogram(waveform: torch.Tensor, filters: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """
    Natural logarithm of the magnitudes of a mono mix in mel bands, not below 1e-5.

    Args:
        waveform: `[B, channels, samples]`.
        filters: `[n_fft // 2 + 1, num_mels]`, see [`mel_filters`].
        n_fft, hop_length: window, of Hann's shape, and step between frames, in samples; frames are centred.

    Returns:
        `[B, num_mels, 1 + samples // hop_length]`, float32.
    """
    mono = waveform.float().mean(dim=1)
    window = torch.hann_window(n_fft, device=mono.device)
    magnitudes = torch.stft(mono, n_fft, hop_length, window=window, return_complex=True).abs()
    return (magnitudes.transpose(1, 2) @ filters.to(mono.device)).transpose(1, 2).clamp(min=1e-5).log()


AUDIO_TYPES = ("audio_autoencoder", "audio_autoencoder_v2", "mel_spec")


class AudioXConditioner(ModelMixin, ConfigMixin, FullTensorAdapterMixin):
    r"""
    Turns the embeddings of each modality into tokens of one width and joins them into the context of the transformer
    (arXiv 2503.10522, section 3.2). A modality that a sample lacks is given as zeros, or as `None` where the whole
    batch lacks it; for video and audio the learned empty tokens take its place, where the model has them.

    Parameters:
        condition_dim (`int`): width of the tokens, and of the frames' and the text's embeddings.
        num_text_tokens (`int`): text tokens, padding included.
        num_video_frames (`int`): frames of one window, at `video_fps`.
        num_frame_tokens (`int`): tokens that the image encoder gives for one frame, class token included.
        num_video_tokens (`int`): video tokens in the context.
        num_temporal_layers, num_temporal_heads (`int`): size of the transformer over the frames; its heads are 64
            wide.
        video_fps (`float`): frames a second that the weights expect.
        num_sync_tokens (`int`, *optional*): tokens of Synchformer for one window; `None` for models without.
        audio_type (`str`): how audio prompts are read. `"audio_autoencoder"`: a token for each latent frame;
            `"audio_autoencoder_v2"`: latent frames resampled to `num_audio_tokens`; `"mel_spec"`: a token for each
            frame of a mel spectrogram of `num_mels` bands.
        latent_channels (`int`): channels of the audio prompt's latents.
        num_audio_latents (`int`): latent frames of an audio prompt.
        num_audio_tokens (`int`): audio tokens in the context, of `"audio_autoencoder_v2"`.
        num_mels, mel_n_fft, mel_hop_length, mel_sampling_rate (`int`): of `"mel_spec"`, see `log_mel_spectrogram`.
        audio_prompt_samples (`int`): samples of one audio prompt.
        num_fusion_experts, num_fusion_heads, num_fusion_layers (`int`, *optional*): size of the fusion, experts of
            each modality; `None` for models without.
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
            text_embeds (`torch.Tensor` of shape `[B, num_text_tokens, condition_dim]`, *optional*): last hidden state
                of the text encoder, zeroed at padding.
            video_embeds (`torch.Tensor` of shape `[B, num_video_frames, num_frame_tokens, condition_dim]`,
                *optional*): last hidden state of the image encoder for each frame.
            audio_latents (`torch.Tensor` of shape `[B, latent_channels, num_audio_latents]`, *optional*): latents of
                the audio prompt. `"audio_autoencoder_v2"` needs them: those of silence for no audio.
            sync_embeds (`torch.Tensor` of shape `[B, num_sync_tokens, condition_dim]`, *optional*): tokens of
                Synchformer, zeros without video.
            audio_waveform (`torch.Tensor` of shape `[B, channels, samples]`, *optional*): the audio prompt itself, for
                `"mel_spec"`; silence for no audio.
            return_dict (`bool`): whether to return an [`AudioXConditionerOutput`].

        Returns:
            [`AudioXConditionerOutput`] or its values as a tuple, the context first.

        Raises:
            ValueError: if no modality is given, one that the model has no use for is, or one has another shape than
                the weights fix.
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
            # The released models give the block text in the place of video, and video in that of text.
            fused = self.fusion(text_tokens, video_tokens, audio_tokens)
        condition_embeds = torch.cat(fused, dim=1)

        if not return_dict:
            return (condition_embeds, video_tokens, text_tokens, audio_tokens)
        return AudioXConditionerOutput(condition_embeds, video_tokens, text_tokens, audio_tokens)

    def _check_shapes(self, embeds: dict[str, torch.Tensor | None]) -> int:
        """The batch size of what is given."""
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
                f"Give at least one of {', '.join(f'`{name}`' for name in shapes)}, all of one batch size; got batch"
                f" sizes {sorted(batch_sizes)}."
            )
        for name, tensor in given.items():
            if name not in shapes:
                raise ValueError(f"`{name}` is of no use to this model.")
            shape = shapes[name]
            if tensor.ndim != 1 + len(shape) or any(
                isinstance(size, int) and size != actual for size, actual in zip(shape, tensor.shape[1:], strict=True)
            ):
                raise ValueError(f"`{name}` must have the shape {('B', *shape)}, got {tuple(tensor.shape)}.")
        if config.audio_type == "audio_autoencoder_v2" and "audio_latents" not in given:
            raise ValueError("`audio_latents` is needed by this model: give the latents of silence for no audio.")
        return batch_sizes.pop()
