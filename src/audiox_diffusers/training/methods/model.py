"""All trained networks as one module, which accelerate wraps and shards."""

import torch
import torch.nn as nn

from ..data.batches import Batch
from ..data.decoding import Pictures
from ..data.encoding import RecordEncoder
from ..data.records import Record


def encode_conditions(conditioner: nn.Module, embeds: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Return the context of a batch, `[B, tokens, width]`, with its masks applied to the embeddings."""
    text_embeds = embeds["text_embeds"] * batch.text_mask[..., None]
    video_embeds = embeds["video_embeds"] * batch.video_mask[..., None]
    embeds = {**embeds, "text_embeds": text_embeds, "video_embeds": video_embeds}
    return conditioner(**embeds, return_dict=False)[0] * batch.context_mask[:, None, None]


class AudioXTrainingModel(nn.Module):
    """
    Conditioner, transformer and the trained encoders.

    Args:
        encoder: Encodes the records. Its pipeline holds the networks.
        autocast_dtype: Dtype of mixed precision, `None` without. accelerate does not autocast with FSDP2 and DeepSpeed.
    """

    def __init__(self, encoder: RecordEncoder, autocast_dtype: torch.dtype | None = None):
        super().__init__()
        pipe = encoder.pipe
        self.transformer = pipe.transformer
        self.conditioner = pipe.conditioner
        self.encoders = nn.ModuleDict({name: getattr(pipe, name) for name in encoder.trained})
        self.autocast_dtype = autocast_dtype
        self._encoder = encoder
        # FSDP shards these blocks if its config names none. accelerate refuses names that the model does not have.
        names = {*self.transformer._no_split_modules, *self.conditioner._no_split_modules}
        self._no_split_modules = sorted(names & {type(module).__name__ for module in self.modules()})

    def forward(self, noised_latents: torch.Tensor, timestep: torch.Tensor, batch: Batch) -> torch.Tensor:
        """
        Predict the velocity.

        Args:
            noised_latents (`torch.Tensor` of shape `[B, C, L]`): Latents to denoise.
            timestep (`torch.Tensor` of shape `[B]`): Timesteps in 0..1.
            batch: Conditions and their masks.

        Returns:
            The velocity, `[B, C, L]`.
        """
        with torch.autocast(noised_latents.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return self._predict(noised_latents, timestep, batch)

    def _predict(self, noised_latents: torch.Tensor, timestep: torch.Tensor, batch: Batch) -> torch.Tensor:
        condition_embeds = encode_conditions(self.conditioner, {**batch.embeds, **self._encode(batch)}, batch)
        return self.transformer(noised_latents, timestep, condition_embeds, return_dict=False)[0]

    def _encode(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Encode the batch with the trained encoders, with gradients."""
        embeds, samples = {}, batch.samples
        if "text_encoder" in self._encoder.trained:
            embeds["text_embeds"] = self._encoder.texts([self._text(sample.record) for sample in samples])
        for name, encoder, encode in (
            ("video_embeds", "image_encoder", self._encoder.frames),
            ("sync_embeds", "sync_encoder", self._encoder.sync_frames),
        ):
            if encoder in self._encoder.trained:
                pictures = [self._pictures(sample.record) for sample in samples]
                rows = [
                    null if picture is None else encode(picture).to(null.dtype)
                    for picture, null in zip(pictures, batch.embeds[name], strict=True)
                ]
                embeds[name] = torch.stack(rows)
        return embeds

    def _text(self, record: Record) -> str:
        if record.task_spec.text:
            return record.caption
        return self._encoder.video_prompt if record.task_spec.video or record.task_spec.image else ""

    @staticmethod
    def _pictures(record: Record) -> Pictures | None:
        if record.task_spec.video:
            return record.video
        return record.image if record.task_spec.image else None
