"""From prompts of every kind to the context of the transformer: what all pipelines of AudioX share."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils import logging
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .features import is_features, load_features
from .inputs import read_audio, read_image, read_video, split_batch

logger = logging.get_logger(__name__)

VIDEO_PROMPT = "Generate general audio for the video"

# Segments of a video that Synchformer sees at a time: about a gigabyte of activations at full size.
SYNC_BATCH = 4


def with_default(text: str | None, video: Any, image: Any) -> str:
    """The text of a sample: its own, or without one that of training where there is a picture, or the empty text."""
    if text is not None:
        return text
    return "" if video is None and image is None else VIDEO_PROMPT


class AudioXConditioningMixin:
    """
    Encoding of prompts, for pipelines with the components `text_encoder`, `tokenizer`, `image_encoder`,
    `sync_encoder`, `vae` and `conditioner`.
    """

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        r"""
        Text to embeddings: the last hidden state of T5, padded to the tokenizer's `model_max_length` tokens and
        zeroed at the padding.

        Args:
            prompt (`str` or `list[str]`, *optional*): what to hear.
            negative_prompt (`str` or `list[str]`, *optional*): what not to hear.
            device (`torch.device`, *optional*): where to; by default where the pipeline runs.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): passed
                on as they are, in the place of the texts.

        Returns:
            `prompt_embeds` and `negative_prompt_embeds`, each `None` where nothing was given.
        """
        device = device or self._execution_device
        if prompt_embeds is None and prompt is not None:
            prompt_embeds = self._encode_text("prompt", prompt, device)
        if negative_prompt_embeds is None and negative_prompt is not None:
            negative_prompt_embeds = self._encode_text("negative_prompt", negative_prompt, device)
        return prompt_embeds, negative_prompt_embeds

    def _encode_text(self, name: str, text: str | list[str], device: torch.device) -> torch.Tensor:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(f"`{name}` needs a `text_encoder` and a `tokenizer`; without them give `{name}_embeds`.")
        text = [text] if isinstance(text, str) else text
        max_length = self.tokenizer.model_max_length
        inputs = self.tokenizer(
            text, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        )
        for item, tokens in enumerate(self.tokenizer(text, padding=False, verbose=False).input_ids):
            if len(tokens) > max_length:
                lost = self.tokenizer.decode(tokens[max_length - 1 : -1])
                logger.warning(f"`{name}` {item} is longer than {max_length} tokens; this part is lost: {lost}")
        mask = inputs.attention_mask.to(device)
        hidden_states = self.text_encoder(inputs.input_ids.to(device), attention_mask=mask).last_hidden_state
        return hidden_states * mask[..., None].to(hidden_states.dtype)

    @property
    def video_fps(self) -> float:
        """Frames a second that videos are read at, and that frames are expected at."""
        if self.sync_encoder is not None:
            return self.sync_encoder.config.video_fps
        return self.conditioner.config.video_fps

    def _video_batch(self, video: Any, image: Any) -> list[tuple[Any, Any]]:
        """Pairs of a video and an image, of which at most one is given."""
        videos, images = split_batch("video", video), split_batch("image", image)
        items = self._broadcast(max(len(videos or []), len(images or [])), video=videos, image=images)
        pairs = list(zip(items["video"], items["image"], strict=True))
        if any(video_item is not None and image_item is not None for video_item, image_item in pairs):
            raise ValueError("Give either `video` or `image` for a sample, not both.")
        return pairs

    @staticmethod
    def _stack(pairs: list[tuple[Any, Any]], encode: Callable[[Any, Any], torch.Tensor | None]) -> torch.Tensor | None:
        """
        `encode` once for each video or image, however often it is in the batch: rows for all, of zeros where it gives
        `None`; `None` if it does so for all.
        """
        rows: dict[tuple[int, int], torch.Tensor | None] = {}
        for video_item, image_item in pairs:
            key = id(video_item), id(image_item)
            if key not in rows:
                absent = video_item is None and image_item is None
                rows[key] = None if absent else encode(video_item, image_item)
        present = next((row for row in rows.values() if row is not None), None)
        if present is None:
            return None
        rows = {key: torch.zeros_like(present) if row is None else row for key, row in rows.items()}
        return torch.stack([rows[id(video_item), id(image_item)] for video_item, image_item in pairs])

    def encode_video(
        self,
        video: Any = None,
        image: Any = None,
        device: torch.device | None = None,
        start: float | None = None,
    ) -> torch.Tensor | None:
        r"""
        Video and pictures to embeddings: the last hidden state of CLIP for each frame of a window. A picture is shown
        as a still video; a short video keeps its last frame.

        Args:
            video (*optional*): a path, also of features that `audiox features` wrote, or frames at the model's rate
                (`video_fps`): a list of PIL pictures, numpy `[T, H, W, 3]` or tensor `[T, 3, H, W]`, uint8 or float
                0..1; a list of those, or an array with one more dimension, is a batch. Items may be `None`.
            image (*optional*): a path, a PIL picture, numpy `[H, W, 3]` or tensor `[3, H, W]`; or a batch of them.
            device (`torch.device`, *optional*): where to; by default where the pipeline runs.
            start (`float`, *optional*): seconds into the video at which the window begins, for one of the windows of a
                longer sound; by default the one window that there is, with a warning of a video that is longer.

        Returns:
            `[B, num_video_frames, num_frame_tokens, width]`, zeros for items with neither video nor image; `None` if
            the whole batch has neither.
        """
        device = device or self._execution_device
        config = self.conditioner.config

        def encode(video_item: Any, image_item: Any) -> torch.Tensor | None:
            if is_features(video_item):
                shape = (config.num_video_frames, config.num_frame_tokens, config.condition_dim)
                return load_features(video_item, "video_embeds", shape).to(device)
            if self.image_encoder is None:
                raise ValueError("`video` and `image` need an `image_encoder`.")
            size = (self.image_encoder.config.image_size,) * 2
            if video_item is None:
                frames = read_image(image_item, size)
            else:
                stride = round(self.video_fps / config.video_fps)
                num_frames = config.num_video_frames * stride
                frames = read_video(video_item, self.video_fps, num_frames, size, stride=stride, start=start)
            return self.embed_frames(frames.to(device)) if frames.any() else None

        return self._stack(self._video_batch(video, image), encode)

    def embed_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """
        Frames of CLIP's size, `[T, 3, H, W]` in 0..1 with `T` at most `num_video_frames`, to its tokens
        `[num_video_frames, num_frame_tokens, width]`. The last frame stays to the end.
        """
        mean = frames.new_tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
        std = frames.new_tensor(OPENAI_CLIP_STD).view(3, 1, 1)
        pixel_values = ((frames - mean) / std).to(self.image_encoder.dtype)
        embeds = self.image_encoder(pixel_values).last_hidden_state
        missing = self.conditioner.config.num_video_frames - len(embeds)
        return torch.cat((embeds, embeds[-1:].expand(missing, -1, -1)))

    def encode_sync(
        self,
        video: Any = None,
        image: Any = None,
        device: torch.device | None = None,
        start: float | None = None,
    ) -> torch.Tensor | None:
        r"""
        Video and pictures to the tokens of Synchformer, which tell when things happen. The short side of a frame is
        resized, bicubic, and its centre cut out; values are in -1..1. A few segments are encoded at a time.

        Args:
            video, image, device, start: as in [`~AudioXConditioningMixin.encode_video`].

        Returns:
            `[B, num_sync_tokens, width]`, zeros for items with neither video nor image; `None` if the whole batch has
            neither, or the model has no Synchformer.
        """
        num_tokens = self.conditioner.config.num_sync_tokens
        if num_tokens is None:
            return None
        device = device or self._execution_device

        def encode(video_item: Any, image_item: Any) -> torch.Tensor | None:
            if is_features(video_item):
                shape = (num_tokens, self.conditioner.config.condition_dim)
                return load_features(video_item, "sync_embeds", shape).to(device)
            if self.sync_encoder is None:
                raise ValueError("`video` and `image` need a `sync_encoder`.")
            size = (self.sync_encoder.config.image_size,) * 2
            if video_item is None:
                frames = read_image(image_item, size, fit="crop", warn=False)
            else:
                frames = read_video(
                    video_item, self.video_fps, self.num_sync_frames, size, fit="crop", warn=False, start=start
                )
            return self.embed_sync_frames(frames, device)

        return self._stack(self._video_batch(video, image), encode)

    @property
    def num_sync_frames(self) -> int:
        """Frames of one window that Synchformer sees."""
        config = self.sync_encoder.config
        num_segments = self.conditioner.config.num_sync_tokens // (config.num_frames // config.tubelet_size)
        return config.num_frames + (num_segments - 1) * config.segment_stride

    def embed_sync_frames(self, frames: torch.Tensor, device: torch.device) -> torch.Tensor:
        """
        Frames of Synchformer's size, `[T, 3, H, W]` in 0..1 with `T` at most `num_sync_frames`, to its tokens
        `[num_sync_tokens, width]`. The last frame stays to the end; frames go to the `device` a few segments at a time.
        """
        config = self.sync_encoder.config
        # All segments of a still picture are the same: one is enough.
        num_frames = config.num_frames if len(frames) == 1 else self.num_sync_frames
        frames = torch.cat((frames, frames[-1:].expand(num_frames - len(frames), -1, -1, -1)))
        segments = frames.unfold(0, config.num_frames, config.segment_stride).movedim(-1, 1) * 2 - 1
        tokens = [
            self.sync_encoder(batch.to(device, self.sync_encoder.dtype)).last_hidden_state
            for batch in segments.split(SYNC_BATCH)
        ]
        tokens = torch.cat(tokens).flatten(0, 1)
        return tokens.repeat(self.conditioner.config.num_sync_tokens // len(tokens), 1)

    def encode_audio(
        self,
        audio: Any = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        padding_side: str = "right",
        device: torch.device | None = None,
    ) -> torch.Tensor | None:
        r"""
        Audio prompts to latents, drawn from the posterior of the VAE; for models that read a mel spectrogram, to
        waveforms of the right length.

        Args:
            audio (*optional*): a path, or `(waveform, rate)` with `[N]` or `[channels, N]`, tensor or numpy, in -1..1,
                any rate; a list of those, or one waveform `[B, channels, N]`, is a batch. Items may be `None`.
                Silence counts as no audio.
            generator (`torch.Generator` or one for each item, *optional*): source of the posterior's noise.
            padding_side (`str`): where silence is added to a short sound, `"right"` or `"left"`.
            device (`torch.device`, *optional*): where to; by default where the pipeline runs.

        Returns:
            `[B, latent_channels, num_audio_latents]` or `[B, channels, audio_prompt_samples]`, float32. Items without
            audio: zeros where the model has learned tokens for them, those of silence, not drawn but the most likely
            ones, where it has not. `None` if `audio` is, or the whole batch has none and the model has learned tokens.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` must be 'left' or 'right', got {padding_side!r}.")
        items = split_batch("audio", audio)
        config = self.conditioner.config
        if items is None or (config.audio_type == "audio_autoencoder" and all(item is None for item in items)):
            return None
        if isinstance(generator, list) and len(generator) != len(items):
            raise ValueError(f"`generator` is a list of {len(generator)}, for {len(items)} samples.")

        device = device or self._execution_device
        sampling_rate, channels = self.vae.config.sampling_rate, self.vae.config.audio_channels
        waveforms = torch.zeros(len(items), channels, config.audio_prompt_samples)
        for waveform, item in zip(waveforms, items, strict=True):
            if item is not None:
                waveform.copy_(read_audio(item, sampling_rate, channels, config.audio_prompt_samples, padding_side))
        return self.encode_waveforms(waveforms, generator, device)

    def encode_waveforms(
        self,
        waveforms: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """[`~AudioXConditioningMixin.encode_audio`] of waveforms as they are, `[B, channels, audio_prompt_samples]`."""
        device, config = device or self._execution_device, self.conditioner.config
        if config.audio_type == "mel_spec":
            return waveforms.to(device)

        latents = torch.zeros(len(waveforms), config.latent_channels, config.num_audio_latents, device=device)
        audible = waveforms.flatten(1).any(dim=1)
        for i in audible.nonzero().flatten().tolist():
            posterior = self.vae.encode(waveforms[i : i + 1].to(device, self.vae.dtype)).latent_dist
            latents[i] = posterior.sample(generator[i] if isinstance(generator, list) else generator)[0]
        if config.audio_type != "audio_autoencoder" and not audible.all():
            silence = torch.zeros_like(waveforms[:1]).to(device, self.vae.dtype)
            latents[(~audible).to(device)] = self.vae.encode(silence).latent_dist.mode().float()
        return latents

    def encode_conditions(
        self,
        prompt: str | list[str | None] | None = None,
        video: Any = None,
        image: Any = None,
        audio: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        audio_padding_side: str = "right",
        num_waveforms_per_prompt: int = 1,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        r"""
        All prompts to the context that the transformer attends to. See [`~AudioXPipeline.encode_video`] and
        [`~AudioXPipeline.encode_audio`] for what may be given; one item goes with each item of a longer list. A
        sample without text gets `"Generate general audio for the video"`, as in training, where it has a picture, and
        the empty text otherwise. Each sample is encoded `num_waveforms_per_prompt` times, with a draw of its own from
        the posterior of its audio prompt, and a generator of its own where `generator` is a list.

        Returns:
            `condition_embeds`, `[B * num_waveforms_per_prompt, tokens, width]`.
        """
        device = device or self._execution_device
        items = self.broadcast_prompts(
            [prompt] if isinstance(prompt, str) else prompt,
            video,
            image,
            audio,
            prompt_embeds,
            generator,
            num_waveforms_per_prompt,
        )
        if prompt_embeds is None:
            texts = zip(items["prompt"], items["video"], items["image"], strict=True)
            prompt_embeds = self.embed_texts([with_default(*sample) for sample in texts], device)
        else:
            prompt_embeds = torch.stack(items["prompt_embeds"])
        return self.join_embeds(
            prompt_embeds,
            self.encode_video(items["video"], items["image"], device=device),
            self.encode_sync(items["video"], items["image"], device=device),
            self.encode_audio(items["audio"], generator, audio_padding_side, device=device),
            device,
        )

    def broadcast_prompts(
        self,
        prompts: list | None,
        video: Any,
        image: Any,
        audio: Any,
        prompt_embeds: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        num_waveforms_per_prompt: int,
    ) -> dict[str, list]:
        """What each sound is made of, by modality, `None` for what it lacks; `ValueError` if it has nothing at all."""
        batches = {
            "prompt": prompts,
            "prompt_embeds": None if prompt_embeds is None else list(prompt_embeds),
            "video": split_batch("video", video),
            "image": split_batch("image", image),
            "audio": split_batch("audio", audio),
        }
        batch_size = max([len(items) for items in batches.values() if items is not None], default=0)
        items = self._broadcast(batch_size, **batches)
        for i in range(batch_size):
            if all(items[name][i] is None for name in items):
                raise ValueError(
                    "Give at least one of `prompt`, `video`, `image`, `audio`, `prompt_embeds` and"
                    f" `condition_embeds`; sample {i} has none."
                )
        num_sounds = batch_size * num_waveforms_per_prompt
        if isinstance(generator, list) and len(generator) != num_sounds:
            raise ValueError(f"`generator` is a list of {len(generator)}, for {num_sounds} sounds.")
        return {
            name: [value for value in values for _ in range(num_waveforms_per_prompt)]
            for name, values in items.items()
        }

    def embed_texts(self, texts: list[str], device: torch.device) -> torch.Tensor:
        """Texts to embeddings `[B, num_text_tokens, width]`; `ValueError` if the tokenizer pads to another length."""
        prompt_embeds, _ = self.encode_prompt(texts, device=device)
        if prompt_embeds.shape[1] != self.conditioner.config.num_text_tokens:
            raise ValueError(
                f"`tokenizer` pads to {prompt_embeds.shape[1]} tokens, and the model expects"
                f" {self.conditioner.config.num_text_tokens}: set its `model_max_length`."
            )
        return prompt_embeds

    def join_embeds(
        self,
        prompt_embeds: torch.Tensor,
        video_embeds: torch.Tensor | None,
        sync_embeds: torch.Tensor | None,
        audio_embeds: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """The embeddings of each modality, as their encoders give them, to the context `[B, tokens, width]`."""
        dtype = self.conditioner.dtype
        audio_name = "audio_waveform" if self.conditioner.config.audio_type == "mel_spec" else "audio_latents"
        embeds = {
            "text_embeds": prompt_embeds,
            "video_embeds": video_embeds,
            "sync_embeds": sync_embeds,
            audio_name: audio_embeds,
        }
        for name, tensor in embeds.items():
            # A waveform becomes a spectrogram first, in float32.
            target = torch.float32 if name == "audio_waveform" else dtype
            embeds[name] = None if tensor is None else tensor.to(device, target)
        return self.conditioner(**embeds, return_dict=False)[0]

    @staticmethod
    def _broadcast(batch_size: int, **batches: list | None) -> dict[str, list]:
        """Each modality as a list of `batch_size` items: absent ones as `None`s, a single one repeated."""
        lengths = {name: len(items) for name, items in batches.items() if items is not None}
        if any(length not in (1, batch_size) for length in lengths.values()):
            listed = ", ".join(f"`{name}` has {length}" for name, length in lengths.items())
            raise ValueError(f"All lists must be equally long: {listed}.")
        broadcast = {}
        for name, items in batches.items():
            items = [None] if items is None else items
            broadcast[name] = items * batch_size if len(items) == 1 else items
        return broadcast
