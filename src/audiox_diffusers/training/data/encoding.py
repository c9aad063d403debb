"""Decoded records, encoded to embeddings and latents by the encoders of a pipeline."""

from dataclasses import dataclass

import torch

from ...pipelines import AudioXPipeline
from .decoding import Pictures
from .records import Record
from .windows import WindowSpec

ENCODERS = ("text_encoder", "image_encoder", "sync_encoder", "vae")


@dataclass
class Encoded:
    """
    A record, encoded by the frozen encoders. Absent modalities and those of trained encoders are `None`.

    Attributes:
        latent_mean, latent_std: `[C, N]`, posterior of the window, as part of the whole record. `N` covers a window and
            an audio prompt.
        text_embeds: `[T, D]`, of the caption that the task spec chose. `T` is at most `num_text_tokens`; the rest is zero.
        video_embeds, image_embeds: `[num_video_frames, num_frame_tokens, D]`.
        video_sync_embeds, image_sync_embeds: `[num_sync_tokens, D]`.
        previous_mean, previous_std: `[C, P]`, posterior of the sound before the window. `P` is at most
            `num_audio_latents`, and less near the start of the record.
        waveform: `[channels, audio_prompt_samples]`, for models that read a mel spectrogram.
        previous_waveform: `[channels, S]`, the sound before the window, for these models. `S` is at most
            `audio_prompt_samples`.
    """

    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    video_sync_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    image_sync_embeds: torch.Tensor | None = None
    previous_mean: torch.Tensor | None = None
    previous_std: torch.Tensor | None = None
    waveform: torch.Tensor | None = None
    previous_waveform: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class NullEmbeddings:
    """
    Embeddings of absent modalities.

    Attributes:
        no_text: `[num_text_tokens, D]`, embeddings of the empty text.
        video_text: `[num_text_tokens, D]`, embeddings of the prompt for a picture without text.
        silence: `[C, num_audio_latents]`, latents of silence, as long as an audio prompt.
    """

    no_text: torch.Tensor
    video_text: torch.Tensor
    silence: torch.Tensor


class RecordEncoder:
    """
    Encodes records with the components of a pipeline.

    Args:
        pipe: Pipeline with the encoders. They are not moved.
        device: Device of the encoders.
        video_prompt: Text for a picture without a caption.
        trained: Names of the encoders that are trained. `encode` skips them: [`AudioXTrainingModel`] calls them, so
            that they get gradients.
    """

    def __init__(self, pipe: AudioXPipeline, device: torch.device, video_prompt: str, trained: tuple[str, ...] = ()):
        self.pipe = pipe
        self.device = device
        self.video_prompt = video_prompt
        self.trained = trained
        self.spec = WindowSpec.of(pipe)
        self.reads_waveforms = pipe.conditioner.config.audio_type == "mel_spec"

    @torch.no_grad()
    def null_embeddings(self) -> NullEmbeddings:
        """Return the embeddings of absent modalities."""
        no_text, video_text = self.texts(["", self.video_prompt])
        conditioner, vae = self.pipe.conditioner.config, self.pipe.vae
        silence = torch.zeros(1, vae.config.audio_channels, conditioner.audio_prompt_samples, device=self.device)
        mode = vae.encode(silence.to(vae.dtype)).latent_dist.mode()[0]
        return NullEmbeddings(no_text, video_text, mode[:, : conditioner.num_audio_latents])

    @torch.no_grad()
    def encode(self, records: list[Record]) -> list[Encoded]:
        """Encode the modalities of each record, except those of trained encoders."""
        encoded = self._encode_sounds(records)
        if "text_encoder" not in self.trained:
            self._encode_captions(records, encoded)
        for record, item in zip(records, encoded, strict=True):
            for name, pictures in (("video", record.video), ("image", record.image)):
                if pictures is not None and "image_encoder" not in self.trained:
                    setattr(item, f"{name}_embeds", self.frames(pictures))
                if pictures is not None and "sync_encoder" not in self.trained:
                    setattr(item, f"{name}_sync_embeds", self.sync_frames(pictures))
            if record.prompt is not None:
                self._encode_prompt(record.prompt, item)
        return encoded

    def _encode_sounds(self, records: list[Record]) -> list[Encoded]:
        """Encode the windows, and the sound before them where it is the audio prompt."""
        shapes = {record.sound.shape for record in records}
        posteriors = {}
        for shape in shapes:
            group = [number for number, record in enumerate(records) if record.sound.shape == shape]
            mean, std = self.posterior(torch.stack([records[number].sound for number in group]))
            posteriors |= {number: (mean[row], std[row]) for row, number in enumerate(group)}
        return [self._window(record, *posteriors[number]) for number, record in enumerate(records)]

    def _window(self, record: Record, mean: torch.Tensor, std: torch.Tensor) -> Encoded:
        """Cut the window out of the posterior of a record's sound."""
        spec, first = self.spec, record.window[0] // self.spec.hop_length
        window = slice(first, first + spec.num_latents)
        encoded = Encoded(mean[:, window], std[:, window])
        if self.reads_waveforms:
            encoded.waveform = record.waveform[:, : spec.prompt_samples]
        if record.task_spec.audio == "previous" and record.prompt is None:
            if self.reads_waveforms:
                begin = record.window[0]
                encoded.previous_waveform = record.sound[:, max(0, begin - spec.prompt_samples) : begin]
            else:
                before = slice(max(0, first - self.pipe.conditioner.config.num_audio_latents), first)
                encoded.previous_mean, encoded.previous_std = mean[:, before], std[:, before]
        return encoded

    def _encode_captions(self, records: list[Record], encoded: list[Encoded]) -> None:
        captioned = [number for number, record in enumerate(records) if record.caption is not None]
        if captioned:
            embeds = self.texts([records[number].caption for number in captioned])
            for number, text_embeds in zip(captioned, embeds, strict=True):
                encoded[number].text_embeds = text_embeds

    def _encode_prompt(self, prompt: torch.Tensor, item: Encoded) -> None:
        if self.reads_waveforms:
            item.previous_waveform = prompt
        else:
            item.previous_mean, item.previous_std = self.prompt_latents(prompt)

    def prompt_latents(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation, `[C, num_audio_latents]`, of an audio prompt `[channels, samples]`."""
        mean, std = self.posterior(prompt[None])
        num_latents = self.pipe.conditioner.config.num_audio_latents
        return mean[0, :, :num_latents], std[0, :, :num_latents]

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Return text embeddings, `[B, num_text_tokens, D]`."""
        return self.pipe.encode_prompt(texts, device=self.device)[0]

    def frames(self, pictures: Pictures) -> torch.Tensor:
        """Return CLIP embeddings, `[num_video_frames, num_frame_tokens, D]`."""
        return self.pipe.embed_frames(pictures.frames.to(self.device).float() / 255)

    def sync_frames(self, pictures: Pictures) -> torch.Tensor | None:
        """Return Synchformer embeddings, `[num_sync_tokens, D]`; `None` for models without Synchformer."""
        if pictures.sync_frames is None:
            return None
        return self.pipe.embed_sync_frames(pictures.sync_frames.float() / 255, self.device)

    def posterior(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation, `[B, C, N]`, of waveforms `[B, channels, samples]`."""
        vae = self.pipe.vae
        posterior = vae.encode(waveforms.to(self.device, vae.dtype)).latent_dist
        return posterior.mean, posterior.std
