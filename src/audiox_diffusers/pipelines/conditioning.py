"""From prompts of every modality to the context of the transformer."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils import logging
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..messages import shortened
from .checks import check_choice, check_generator, check_tensor
from .features import is_features, load_features
from .inputs import read_audio, read_image, read_video, split_batch
from .prompts import Prompts, broadcast, check_pictures, check_texts

logger = logging.get_logger(__name__)

# Video segments that Synchformer encodes at a time: about a gigabyte of activations at full size.
SYNC_BATCH = 4

# Tokenizers keep how they pad and truncate in an object that threads share.
_tokenizer_lock = threading.Lock()

# The video and the image of a sound. At most one of the two is given.
Pictures = list[tuple[Any, Any]]


class AudioXConditioningMixin:
    """
    Encoding of prompts, for pipelines with the components `text_encoder`, `tokenizer`, `image_encoder`,
    `sync_encoder`, `vae` and `conditioner`.
    """

    def require(self, *names: str) -> None:
        """Raise `ValueError` if a component is missing."""
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(
                    f"The pipeline has no `{name}`, which is needed here; set it with `pipe.{name} = ...`."
                )

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        r"""
        Encode text as the last hidden state of T5, padded to the tokenizer's `model_max_length` and zero at the
        padding.

        Args:
            prompt (`str` or `list[str]`, *optional*): Text that describes the sound.
            negative_prompt (`str` or `list[str]`, *optional*): Text that describes what to avoid.
            device (`torch.device`, *optional*): Device to encode on; defaults to the pipeline's.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): Embeddings
                to return unchanged instead of encoding the text.

        Returns:
            `tuple`: `prompt_embeds` and `negative_prompt_embeds`, `[B, tokens, width]` each, or `None` where neither
            text nor embeddings were given.
        """
        device = device or self._execution_device
        for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
            if embeds is not None:
                check_tensor(name, embeds, ("B", "tokens", "width"))
        if prompt_embeds is None and prompt is not None:
            prompt_embeds = self._encode_text("prompt", prompt, device)
        if negative_prompt_embeds is None and negative_prompt is not None:
            negative_prompt_embeds = self._encode_text("negative_prompt", negative_prompt, device)
        return prompt_embeds, negative_prompt_embeds

    def _encode_text(self, name: str, text: str | list[str], device: torch.device) -> torch.Tensor:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(f"`{name}` needs a `text_encoder` and a `tokenizer`; without them give `{name}_embeds`.")
        text = [text] if isinstance(text, str) else text
        check_texts(name, text)
        max_length = self.tokenizer.model_max_length
        with _tokenizer_lock:
            inputs = self.tokenizer(
                text, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
            )
            whole = self.tokenizer(text, padding=False, verbose=False).input_ids
        for item, tokens in enumerate(whole):
            if len(tokens) > max_length:
                lost = self.tokenizer.decode(tokens[max_length - 1 : -1])
                logger.warning(
                    f"`{name}` {item} is longer than {max_length} tokens; this part is ignored: {shortened(lost, 200)}"
                )
        mask = inputs.attention_mask.to(device)
        hidden_states = self.text_encoder(inputs.input_ids.to(device), attention_mask=mask).last_hidden_state
        return hidden_states * mask[..., None].to(hidden_states.dtype)

    def encode_video(
        self,
        video: Any = None,
        image: Any = None,
        device: torch.device | None = None,
        start: float | None = None,
    ) -> torch.Tensor | None:
        r"""
        Encode each frame of a window as the last hidden state of CLIP. An image becomes a still video. The last frame
        of a short video is repeated.

        Args:
            video (*optional*): A path (also of a file that `audiox features` wrote), or frames at `video_fps`: a list
                of PIL images, a numpy array `[T, H, W, 3]` or a tensor `[T, 3, H, W]`, uint8 or float in 0..1. A list
                of these, or an array with one more dimension, is a batch. Items may be `None`.
            image (*optional*): A path, a PIL image, a numpy array `[H, W, 3]` or a tensor `[3, H, W]`, or a batch of
                them.
            device (`torch.device`, *optional*): Device to encode on; defaults to the pipeline's.
            start (`float`, *optional*): Start of the window in seconds, for one of many windows. By default the video
                is encoded from its start, with a warning if it is longer than a window.

        Returns:
            `torch.Tensor` or `None`: `[B, num_video_frames, num_frame_tokens, width]`, zeros for items without video
            and image; `None` if there are none at all.
        """
        self.require("conditioner")
        return self._encode_video(_pair(video, image), device or self._execution_device, start)

    def _encode_video(
        self, pictures: Pictures, device: torch.device, start: float | None = None
    ) -> torch.Tensor | None:
        config = self.conditioner.config

        def encode(video: Any, image: Any) -> torch.Tensor | None:
            if is_features(video):
                shape = (config.num_video_frames, config.num_frame_tokens, config.condition_dim)
                return load_features(video, "video_embeds", shape).to(device)
            if self.image_encoder is None:
                raise ValueError("`video` and `image` need an `image_encoder`.")
            size = (self.image_encoder.config.image_size,) * 2
            if video is None:
                frames = read_image(image, size)
            else:
                stride = round(self.video_fps / config.video_fps)
                num_frames = config.num_video_frames * stride
                frames = read_video(video, self.video_fps, num_frames, size, stride=stride, start=start)
            return self.embed_frames(frames.to(device)) if frames.any() else None

        return _encode_distinct(pictures, encode)

    @property
    def video_fps(self) -> float:
        """Frame rate at which videos are read, and of frames that are passed as arrays."""
        if self.sync_encoder is not None:
            return self.sync_encoder.config.video_fps
        return self.conditioner.config.video_fps

    def embed_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """
        Encode frames with CLIP and repeat the last one up to `num_video_frames`.

        Args:
            frames (`torch.Tensor` of shape `[T, 3, H, W]`): Frames of CLIP's size in 0..1, `T <= num_video_frames`.

        Returns:
            `torch.Tensor`: `[num_video_frames, num_frame_tokens, width]`.
        """
        check_tensor("frames", frames, ("T", 3, "H", "W"))
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
        Encode the timing of videos with Synchformer. Frames are resized (bicubic) to cover its size and cropped to the
        centre.

        Args:
            video, image, device, start: See [`~AudioXConditioningMixin.encode_video`].

        Returns:
            `torch.Tensor` or `None`: `[B, num_sync_tokens, width]`, zeros for items without video and image; `None` if
            there are none at all, or the model does not use Synchformer.
        """
        self.require("conditioner")
        return self._encode_sync(_pair(video, image), device or self._execution_device, start)

    def _encode_sync(
        self, pictures: Pictures, device: torch.device, start: float | None = None
    ) -> torch.Tensor | None:
        num_tokens = self.conditioner.config.num_sync_tokens
        if num_tokens is None:
            return None

        def encode(video: Any, image: Any) -> torch.Tensor | None:
            if is_features(video):
                shape = (num_tokens, self.conditioner.config.condition_dim)
                return load_features(video, "sync_embeds", shape).to(device)
            if self.sync_encoder is None:
                raise ValueError("`video` and `image` need a `sync_encoder`.")
            size = (self.sync_encoder.config.image_size,) * 2
            if video is None:
                frames = read_image(image, size, fit="crop", warn=False)
            else:
                num_frames = self.num_sync_frames
                frames = read_video(video, self.video_fps, num_frames, size, fit="crop", warn=False, start=start)
            return self.embed_sync_frames(frames, device)

        return _encode_distinct(pictures, encode)

    @property
    def num_sync_frames(self) -> int:
        """Number of frames in a window of Synchformer."""
        config = self.sync_encoder.config
        num_segments = self.conditioner.config.num_sync_tokens // (config.num_frames // config.tubelet_size)
        return config.num_frames + (num_segments - 1) * config.segment_stride

    def embed_sync_frames(self, frames: torch.Tensor, device: torch.device) -> torch.Tensor:
        """
        Encode frames with Synchformer, a few segments at a time, and repeat the last one up to `num_sync_frames`.

        Args:
            frames (`torch.Tensor` of shape `[T, 3, H, W]`): Frames of Synchformer's size in 0..1, `T <=
                num_sync_frames`.
            device (`torch.device`): Device to encode on.

        Returns:
            `torch.Tensor`: `[num_sync_tokens, width]`.
        """
        check_tensor("frames", frames, ("T", 3, "H", "W"))
        config = self.sync_encoder.config
        # All segments of a still picture are equal, so one is enough.
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
        Encode audio prompts as samples from the VAE's posterior or, for models that read mel spectrograms, as
        waveforms of the window's length.

        Args:
            audio (*optional*): A path, or `(waveform, rate)` with a tensor or numpy array `[N]` or `[channels, N]` in
                -1..1, at any rate. A list of these, or one waveform `[B, channels, N]`, is a batch. Items may be
                `None`. Silence counts as no audio.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Seeds the posterior's noise; a list
                has one for each item.
            padding_side (`str`): Where a short sound is padded with silence, `"right"` or `"left"`.
            device (`torch.device`, *optional*): Device to encode on; defaults to the pipeline's.

        Returns:
            `torch.Tensor` or `None`: Float32 latents `[B, latent_channels, num_audio_latents]` or waveforms
            `[B, channels, audio_prompt_samples]`. Items without audio get zeros if the model has learned tokens for a
            missing prompt, otherwise the mode of the posterior of silence. `None` if `audio` is `None`, or if all
            items are and the model has learned tokens.
        """
        self.require("vae", "conditioner")
        check_choice("padding_side", padding_side, ("left", "right"))
        items = split_batch("audio", audio)
        if items is None:
            return None
        check_generator(generator, len(items))
        return self._encode_audio(items, generator, padding_side, device or self._execution_device)

    def _encode_audio(
        self,
        items: list,
        generator: torch.Generator | list[torch.Generator] | None,
        padding_side: str,
        device: torch.device,
    ) -> torch.Tensor | None:
        config = self.conditioner.config
        if config.audio_type == "audio_autoencoder" and all(item is None for item in items):
            return None
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
        """Do what [`~AudioXConditioningMixin.encode_audio`] does, for waveforms `[B, channels, audio_prompt_samples]`."""
        device, config = device or self._execution_device, self.conditioner.config
        check_tensor("waveforms", waveforms, ("B", self.vae.config.audio_channels, config.audio_prompt_samples))
        check_generator(generator, len(waveforms))
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
        Encode all prompts into the context that the transformer attends to.

        A single item goes with each item of a longer list. A sample without text gets `"Generate general audio for the
        video"`, as in training, if it has a video or an image, and the empty text otherwise.

        Args:
            prompt (`str` or `list[str]`, *optional*): Text that describes the sound.
            video, image (*optional*): See [`~AudioXConditioningMixin.encode_video`].
            audio (*optional*): See [`~AudioXConditioningMixin.encode_audio`].
            prompt_embeds (`torch.Tensor` of shape `[B, num_text_tokens, width]`, *optional*): Embeddings that replace
                the text.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Seeds the posterior's noise of audio
                prompts; a list has one for each row of the result.
            audio_padding_side (`str`): Where a short `audio` is padded with silence, `"right"` or `"left"`.
            num_waveforms_per_prompt (`int`): Contexts per sample, each with its own sample of the posterior.
            device (`torch.device`, *optional*): Device to encode on; defaults to the pipeline's.

        Returns:
            `torch.Tensor`: `condition_embeds`, `[B * num_waveforms_per_prompt, tokens, width]`.
        """
        self.require("vae", "conditioner")
        prompts = Prompts.collect(
            prompt=prompt,
            video=video,
            image=image,
            audio=audio,
            prompt_embeds=prompt_embeds,
            audio_padding_side=audio_padding_side,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
        )
        if prompt_embeds is not None:
            shape = ("B", self.conditioner.config.num_text_tokens, self.conditioner.config.condition_dim)
            check_tensor("prompt_embeds", prompt_embeds, shape)
        if prompts.is_timed:
            raise ValueError("`prompt`: texts with times have more than one context; give them to the pipeline.")
        check_generator(generator, len(prompts))
        return self.encode_window(prompts, generator, device or self._execution_device)

    def encode_window(
        self,
        prompts: Prompts,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Encode prompts without times for sounds of one window, `[sounds, tokens, width]`."""
        return self._encode_window(prompts, generator, device)[:, 0]

    def _encode_window(
        self,
        prompts: Prompts,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
        without: Sequence[str] = (),
    ) -> torch.Tensor:
        """Encode prompts for sounds of one window, also without modalities, `[sounds, 1 + without, tokens, width]`."""
        if prompts.text_embeds[0] is not None:
            text_embeds = torch.stack(prompts.text_embeds)
        else:
            texts = [prompts.text_or_default(sound, text) for sound, text in enumerate(prompts.text)]
            text_embeds = self.embed_texts(texts, device)
        embeds = (
            text_embeds,
            self._encode_video(prompts.pictures, device),
            self._encode_sync(prompts.pictures, device),
            self._encode_audio(prompts.audio, generator, prompts.audio_padding_side, device),
        )
        return self._join_without(prompts, embeds, without, device)

    def embed_texts(self, texts: list[str], device: torch.device) -> torch.Tensor:
        """Encode texts, `[B, num_text_tokens, width]`; `ValueError` if the tokenizer pads to another length."""
        prompt_embeds, _ = self.encode_prompt(texts, device=device)
        if prompt_embeds.shape[1] != self.conditioner.config.num_text_tokens:
            raise ValueError(
                f"`tokenizer` pads to {prompt_embeds.shape[1]} tokens, and the model expects"
                f" {self.conditioner.config.num_text_tokens}: set its `model_max_length`."
            )
        return prompt_embeds

    def _join_without(
        self,
        prompts: Prompts,
        embeds: tuple[torch.Tensor | None, ...],
        without: Sequence[str],
        device: torch.device,
    ) -> torch.Tensor:
        """
        Join embeddings into the contexts of some sounds, and into the contexts without modalities. An absent modality
        is encoded as in training. A sound without its only modality gets the null context. A modality with a negative
        prompt is replaced by that instead.

        Args:
            prompts (`Prompts`): The prompts of these sounds.
            embeds (`tuple`): What `join_embeds` takes.
            without (`Sequence[str]`): Modalities to leave out, each for itself.

        Returns:
            `torch.Tensor`: `[sounds, 1 + without, tokens, width]`.
        """
        contexts = [self.join_embeds(*embeds, device)]
        for modality in without:
            if modality in prompts.negative_embeds:
                contexts.append(self.join_embeds(*_replace_modality(modality, prompts, embeds), device))
                continue
            given = [modality in prompts.modalities(sound) for sound in range(len(prompts))]
            alone = [given[sound] and len(prompts.modalities(sound)) == 1 for sound in range(len(prompts))]
            context = self.join_embeds(*self._leave_out(modality, prompts, embeds, device), device)
            column = torch.tensor(given).to(device)[:, None, None]
            context = torch.where(column, context, contexts[0])
            contexts.append(torch.where(torch.tensor(alone).to(device)[:, None, None], 0, context))
        return torch.stack(contexts, dim=1)

    def _leave_out(
        self, modality: str, prompts: Prompts, embeds: tuple[torch.Tensor | None, ...], device: torch.device
    ) -> tuple[torch.Tensor | None, ...]:
        """Return embeddings with a modality absent in all sounds."""
        text_embeds, video_embeds, sync_embeds, audio_embeds = embeds
        if modality == "text":
            texts = [prompts.text_or_default(sound, None) for sound in range(len(prompts))]
            text_embeds = self.embed_texts(texts, device)
        elif modality == "video":
            video_embeds = sync_embeds = None
        elif audio_embeds is not None:
            silence = torch.zeros(1, self.vae.config.audio_channels, self.conditioner.config.audio_prompt_samples)
            audio_embeds = self.encode_waveforms(silence, device=device).expand(len(audio_embeds), -1, -1)
        return text_embeds, video_embeds, sync_embeds, audio_embeds

    def embed_negatives(
        self,
        prompts: Prompts,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
    ) -> Prompts:
        """Return the prompts with the embeddings of the negative ones, for guidance by modality."""
        embeds: dict[str, tuple[torch.Tensor | None, ...]] = {}
        if prompts.negative_text is not None:
            embeds["text"] = (self.embed_texts(prompts.for_each_sound(prompts.negative_text), device),)
        elif prompts.negative_text_embeds is not None:
            embeds["text"] = (torch.stack(prompts.for_each_sound(list(prompts.negative_text_embeds))),)
        if prompts.negative_video is not None:
            pictures = [(video, None) for video in prompts.for_each_sound(prompts.negative_video)]
            embeds["video"] = self._encode_video(pictures, device), self._encode_sync(pictures, device)
        if prompts.negative_audio is not None:
            items = prompts.for_each_sound(prompts.negative_audio)
            embeds["audio"] = (self._encode_audio(items, generator, "right", device),)
        return replace(prompts, negative_embeds=embeds)

    def join_embeds(
        self,
        prompt_embeds: torch.Tensor,
        video_embeds: torch.Tensor | None,
        sync_embeds: torch.Tensor | None,
        audio_embeds: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Join the embeddings that the encoders return into a context `[B, tokens, width]`."""
        dtype = self.conditioner.dtype
        audio_name = "audio_waveform" if self.conditioner.config.audio_type == "mel_spec" else "audio_latents"
        embeds = {
            "text_embeds": prompt_embeds,
            "video_embeds": video_embeds,
            "sync_embeds": sync_embeds,
            audio_name: audio_embeds,
        }
        for name, tensor in embeds.items():
            # The spectrogram of a waveform is computed in float32.
            target = torch.float32 if name == "audio_waveform" else dtype
            embeds[name] = None if tensor is None else tensor.to(device, target)
        return self.conditioner(**embeds, return_dict=False)[0]


def _replace_modality(
    modality: str, prompts: Prompts, embeds: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Return embeddings in which the negative prompt of a modality replaces the prompt."""
    text_embeds, video_embeds, sync_embeds, audio_embeds = embeds
    negative = prompts.negative_embeds[modality]
    if modality == "text":
        return *negative, video_embeds, sync_embeds, audio_embeds
    if modality == "video":
        return text_embeds, *negative, audio_embeds
    return text_embeds, video_embeds, sync_embeds, *negative


def _pair(video: Any, image: Any) -> Pictures:
    """Split and broadcast videos and images."""
    items = broadcast(video=split_batch("video", video), image=split_batch("image", image))
    check_pictures(items["video"], items["image"])
    return list(zip(items["video"], items["image"]))


def _encode_distinct(pictures: Pictures, encode: Callable[[Any, Any], torch.Tensor | None]) -> torch.Tensor | None:
    """
    Encode each video or image once, however often it occurs, and stack the rows of all. Rows for which `encode` returns
    `None` are zero; if all are, return `None`.
    """
    rows: dict[tuple[int, int], torch.Tensor | None] = {}
    for video, image in pictures:
        key = id(video), id(image)
        if key not in rows:
            rows[key] = None if video is None and image is None else encode(video, image)
    present = next((row for row in rows.values() if row is not None), None)
    if present is None:
        return None
    rows = {key: torch.zeros_like(present) if row is None else row for key, row in rows.items()}
    return torch.stack([rows[id(video), id(image)] for video, image in pictures])
