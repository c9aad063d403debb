"""The tensors of one training step, from encoded records and their task specs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..arguments import MaskingConfig
from .encoding import Encoded, NullEmbeddings
from .masking import TaskSpec, draw_masks, mask_audio_latents
from .records import Record
from .seeds import generator_for
from .streaming import RowKey


@dataclass
class Sample:
    """An encoded record. `record` is `None` if it comes from a cache."""

    key: RowKey
    task_spec: TaskSpec
    encoded: Encoded
    record: Record | None = None


@dataclass
class Batch:
    """
    Inputs of one training step.

    Attributes:
        latents, noise: `[B, C, L]`, float32.
        embeds: Inputs of the conditioner. Absent modalities, and those of trained encoders, have null embeddings.
        text_mask: `[B, num_text_tokens]`, 0 where a token is masked.
        video_mask: `[B, num_video_frames, num_frame_tokens]`, 0 where a patch is masked.
        context_mask: `[B]`, 0 where the whole context is dropped.
        samples: Samples of the batch.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    embeds: dict[str, torch.Tensor]
    text_mask: torch.Tensor
    video_mask: torch.Tensor
    context_mask: torch.Tensor
    samples: list[Sample]


class BatchMaker:
    """
    Makes batches of samples.

    Every draw depends on the seed and the key of the record alone, so the batch, the device and the number of processes
    do not matter.

    Args:
        conditioner_config: Config of the [`AudioXConditioner`].
        latent_shape: `(C, L)` of a window.
        null_embeddings: Embeddings of absent modalities.
        masking: Rates of the masks.
        seed: Seed of all draws.
        device: Device of the batch.
    """

    def __init__(
        self,
        conditioner_config,
        latent_shape: tuple[int, int],
        null_embeddings: NullEmbeddings,
        masking: MaskingConfig,
        seed: int,
        device: torch.device,
    ):
        self.config = conditioner_config
        self.latent_shape = latent_shape
        self.null_embeddings = null_embeddings
        self.masking = masking
        self.seed = seed
        self.device = device

    def make(self, samples: list[Sample]) -> Batch:
        """Return the batch of these samples."""
        config, rows = self.config, []
        for sample in samples:
            generator = generator_for(self.seed, "noise", *sample.key)
            noise = torch.randn(self.latent_shape, generator=generator)
            length = max(self.latent_shape[1], config.num_audio_latents)
            posterior_noise = torch.randn(self.latent_shape[0], length, generator=generator)
            text_mask, video_mask = draw_masks(
                self.masking, generator, config.num_text_tokens, config.num_video_frames, config.num_frame_tokens
            )
            audio_noise = posterior_noise[:, : config.num_audio_latents]
            if sample.task_spec.audio == "previous":
                audio_noise = torch.randn(audio_noise.shape, generator=generator)
            row = {
                "latents": self._latents(sample.encoded, posterior_noise),
                "noise": noise,
                "text_mask": text_mask,
                "video_mask": video_mask,
                "context_mask": torch.tensor(0.0 if sample.task_spec.drop_context else 1.0),
                "text_embeds": self._text(sample),
                "video_embeds": self._pictures(sample, "embeds"),
            }
            if config.num_sync_tokens is not None:
                row["sync_embeds"] = self._pictures(sample, "sync_embeds")
            if config.audio_type == "mel_spec":
                row["audio_waveform"] = self._audio_waveform(sample)
            else:
                row["audio_latents"] = self._audio_latents(sample, audio_noise)
            rows.append({name: value.to(self.device) for name, value in row.items()})
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        names = ("text_embeds", "video_embeds", "sync_embeds", "audio_latents", "audio_waveform")
        embeds = {name: tensors.pop(name).float() for name in names if name in tensors}
        return Batch(**tensors, embeds=embeds, samples=samples)

    def _latents(self, encoded: Encoded, noise: torch.Tensor) -> torch.Tensor:
        length = self.latent_shape[1]
        mean, std = encoded.latent_mean[:, :length], encoded.latent_std[:, :length]
        return mean + std * noise[:, :length].to(mean.device)

    def _text(self, sample: Sample) -> torch.Tensor:
        task_spec, embeds = sample.task_spec, sample.encoded.text_embeds
        if task_spec.text and embeds is not None:
            return F.pad(embeds, (0, 0, 0, self.config.num_text_tokens - len(embeds)))
        return self.null_embeddings.video_text if task_spec.video or task_spec.image else self.null_embeddings.no_text

    def _pictures(self, sample: Sample, name: str) -> torch.Tensor:
        task_spec, config = sample.task_spec, self.config
        if task_spec.video or task_spec.image:
            embeds = getattr(sample.encoded, f"{'video' if task_spec.video else 'image'}_{name}")
            if embeds is not None:
                return embeds
        if name == "sync_embeds":
            return torch.zeros(config.num_sync_tokens, config.condition_dim)
        return torch.zeros(config.num_video_frames, config.num_frame_tokens, config.condition_dim)

    def _audio_latents(self, sample: Sample, noise: torch.Tensor) -> torch.Tensor:
        """Return the audio prompt. Without one: zeros if the model has learned tokens for that, else silence."""
        task_spec, encoded, length = sample.task_spec, sample.encoded, self.config.num_audio_latents
        if task_spec.audio is None:
            learned = self.config.audio_type == "audio_autoencoder"
            return torch.zeros_like(self.null_embeddings.silence) if learned else self.null_embeddings.silence
        if task_spec.audio == "previous":
            # At the start of a record, silence comes before the previous sound.
            missing = length - encoded.previous_mean.shape[1]
            noise = noise[:, missing:].to(encoded.previous_mean.device)
            previous = encoded.previous_mean + encoded.previous_std * noise
            silence = self.null_embeddings.silence[:, :missing].to(self.device)
            return torch.cat((silence, previous.to(self.device)), dim=1)
        mean, std = encoded.latent_mean[:, :length], encoded.latent_std[:, :length]
        latents = (mean + std * noise.to(mean.device)).to(self.device)
        return mask_audio_latents(latents, self.null_embeddings.silence.to(self.device), task_spec.audio_span)

    def _audio_waveform(self, sample: Sample) -> torch.Tensor:
        task_spec, encoded = sample.task_spec, sample.encoded
        if task_spec.audio is None:
            return torch.zeros_like(encoded.waveform)
        if task_spec.audio == "previous":
            missing = encoded.waveform.shape[1] - encoded.previous_waveform.shape[1]
            return F.pad(encoded.previous_waveform, (missing, 0))
        return mask_audio_latents(encoded.waveform, torch.zeros_like(encoded.waveform), task_spec.audio_span)
