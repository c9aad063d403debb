"""Sound and music from any mix of text, video, image and audio."""

import math
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AudioPipelineOutput, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPVisionModelWithProjection, PreTrainedTokenizerBase, T5EncoderModel

from ..diffusers_registry import RegisteredPipelineMixin
from ..embedded import find_model
from ..loaders import AudioXLoraLoaderMixin
from ..models import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
from ..schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from .denoising import AudioXDenoisingMixin, Sampling
from .inputs import read_audio
from .vae_tiles import decode_tiles
from .window_conditions import AudioXWindowConditioningMixin
from .windows import TimedPrompt, Window, check_timed_prompt, is_timed, split_prompts, window_starts, window_weights

logger = logging.get_logger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from audiox_diffusers import AudioXPipeline
        >>> from audiox_diffusers.media import save_video

        >>> pipe = AudioXPipeline.from_pretrained("audiox", dtype=torch.bfloat16).to("cuda")
        >>> audio = pipe(prompt="waves on a pebble beach", video="beach.mp4").audios[0]
        >>> save_video("beach-with-sound.mp4", "beach.mp4", audio, pipe.vae.config.sampling_rate)
        ```
"""


class AudioXPipeline(
    RegisteredPipelineMixin,
    AudioXLoraLoaderMixin,
    AudioXWindowConditioningMixin,
    AudioXDenoisingMixin,
    DiffusionPipeline,
):
    r"""
    Sound and music from any mix of text, video, image and audio, with AudioX (arXiv 2503.10522).

    Args:
        vae ([`AudioXAutoencoderOobleck`]): waveforms to latents and back.
        text_encoder ([`~transformers.T5EncoderModel`] or `None`): T5. Without it, give `prompt_embeds`.
        tokenizer ([`~transformers.T5Tokenizer`] or `None`): pads to its `model_max_length`.
        image_encoder ([`~transformers.CLIPVisionModelWithProjection`] or `None`): CLIP, for video and images.
        sync_encoder ([`SynchformerVisionModel`] or `None`): Synchformer, for the models that follow a video's timing.
        conditioner ([`AudioXConditioner`]): joins the embeddings of all modalities into one context.
        transformer ([`AudioXTransformer2DModel`]): predicts the velocity of noised latents.
        scheduler ([`AudioXDPMSolverSDEScheduler`] or [`AudioXFlowMatchScheduler`]): the noise levels and the step
            between them.
        default_num_inference_steps (`int`): steps of a call that does not say how many.
        default_guidance_scale (`float`): guidance of a call that does not say how strong.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->sync_encoder->conditioner->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "image_encoder", "sync_encoder"]
    _callback_tensor_inputs = ["latents", "condition_embeds", "negative_condition_embeds"]

    def __init__(
        self,
        vae: AudioXAutoencoderOobleck,
        text_encoder: T5EncoderModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        image_encoder: CLIPVisionModelWithProjection | None,
        conditioner: AudioXConditioner,
        transformer: AudioXTransformer2DModel | AudioXMMTransformer2DModel,
        scheduler: AudioXDPMSolverSDEScheduler | AudioXFlowMatchScheduler,
        sync_encoder: SynchformerVisionModel | None = None,
        default_num_inference_steps: int = 250,
        default_guidance_scale: float = 7.0,
    ):
        super().__init__()
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps, default_guidance_scale=default_guidance_scale
        )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            conditioner=conditioner,
            transformer=transformer,
            scheduler=scheduler,
            sync_encoder=sync_encoder,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """
        [`~DiffusionPipeline.from_pretrained`], which here takes `"audiox-tiny"` too: the small model that comes with
        the package, for which nothing is downloaded. A folder of that name in the current directory goes before it.
        """
        return super().from_pretrained(find_model(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """
        A pipeline of this class with the components and defaults of another one, which both then share. Components
        may be replaced by name. Unlike in other pipelines nothing is cast to float32, unless `dtype` asks for it.
        """
        if "dtype" in kwargs or "torch_dtype" in kwargs:
            return super().from_pipe(pipeline, **kwargs)
        names = ("default_num_inference_steps", "default_guidance_scale")
        return cls(**{**pipeline.components, **{name: pipeline.config[name] for name in names}, **kwargs})

    @property
    def window_samples(self) -> int:
        """Samples of one window: what the transformer makes at a time."""
        return self.transformer.config.sample_size * self.vae.hop_length

    def overlap_frames(self, window_overlap_in_s: float | None) -> int:
        """Latent frames that windows overlap by; `ValueError` if there is none, or they are a whole window."""
        window = self.transformer.config.sample_size
        if window_overlap_in_s is None:
            return max(1, window // 4)
        frame_rate = self.vae.config.sampling_rate / self.vae.hop_length
        number = isinstance(window_overlap_in_s, numbers.Real)
        if not number or not 1 <= window_overlap_in_s * frame_rate <= window - 1:
            raise ValueError(
                f"`window_overlap_in_s` must be at least {1 / frame_rate:.4g} and at most"
                f" {(window - 1) / frame_rate:.4g} s, got {window_overlap_in_s}."
            )
        return round(window_overlap_in_s * frame_rate)

    def prepare_latents(
        self,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        num_frames: int | None = None,
    ) -> torch.Tensor:
        """Unit noise `[batch_size, C, L]`, drawn or given, scaled to the first noise level; float32."""
        num_frames = num_frames or self.transformer.config.sample_size
        shape = (batch_size, self.transformer.config.in_channels, num_frames)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"`latents` must have the shape {list(shape)}, got {list(latents.shape)}.")
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def check_inputs(
        self,
        prompt,
        negative_prompt,
        video,
        image,
        audio,
        prompt_embeds,
        negative_prompt_embeds,
        condition_embeds,
        negative_condition_embeds,
        audio_length_in_s,
        num_inference_steps,
        guidance_scale,
        guidance_rescale,
        num_waveforms_per_prompt,
        window_batch_size,
        output_type,
        callback_on_step_end_tensor_inputs,
        output_types=("np", "pt", "latent", "stream"),
    ) -> None:
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text is not None and embeds is not None:
                raise ValueError(f"Give either `{name}` or `{name}_embeds`, not both.")
            texts = split_prompts(text) if name == "prompt" and text is not None else text
            texts = texts if isinstance(texts, list) else [texts]
            if name == "prompt":
                for timed in filter(is_timed, texts):
                    check_timed_prompt(timed)
                texts = [None if is_timed(item) else item for item in texts]
            absent_items = name == "prompt" or text is None
            if not texts or not all(isinstance(item, str) or (item is None and absent_items) for item in texts):
                raise ValueError(f"`{name}` must be a string or a list of strings, got {text!r}.")
            shape = (self.conditioner.config.num_text_tokens, self.conditioner.config.condition_dim)
            if embeds is not None and (embeds.ndim != 3 or embeds.shape[1:] != shape or not embeds.shape[0]):
                raise ValueError(f"`{name}_embeds` must have the shape {['B', *shape]}, got {list(embeds.shape)}.")

        others = {"prompt": prompt, "video": video, "image": image, "audio": audio, "prompt_embeds": prompt_embeds}
        given = [name for name, value in others.items() if value is not None]
        if condition_embeds is None and not given:
            raise ValueError(
                "Give at least one of `prompt`, `video`, `image`, `audio`, `prompt_embeds` and `condition_embeds`."
            )
        if condition_embeds is not None and given:
            raise ValueError(f"`condition_embeds` replaces all prompts; leave out `{given[0]}`.")
        if negative_condition_embeds is not None:
            if negative_prompt is not None or negative_prompt_embeds is not None:
                raise ValueError("`negative_condition_embeds` replaces all negative prompts; leave them out.")
        for name, embeds in (
            ("condition_embeds", condition_embeds),
            ("negative_condition_embeds", negative_condition_embeds),
        ):
            width = self.transformer.config.cross_attention_input_dim
            if embeds is not None and (embeds.ndim != 3 or embeds.shape[2] != width):
                raise ValueError(f"`{name}` must have the shape [B, tokens, {width}], got {list(embeds.shape)}.")

        if not isinstance(audio_length_in_s, numbers.Real) or not math.isfinite(audio_length_in_s):
            raise ValueError(f"`audio_length_in_s` must be a finite number of seconds, got {audio_length_in_s}.")
        if audio_length_in_s * self.vae.config.sampling_rate < 1:
            raise ValueError(f"`audio_length_in_s` must be above 0, got {audio_length_in_s}.")
        for timed in filter(is_timed, split_prompts(prompt) or []):
            if abs(timed[-1][1] - audio_length_in_s) * self.vae.config.sampling_rate >= 1:
                raise ValueError(
                    f"`prompt`: the spans end at {timed[-1][1]:g} s, and the sound is {audio_length_in_s:g} s long."
                )
        for name, count in (
            ("window_batch_size", window_batch_size),
            ("num_inference_steps", num_inference_steps),
            ("num_waveforms_per_prompt", num_waveforms_per_prompt),
        ):
            if not isinstance(count, numbers.Integral) or count < 1:
                raise ValueError(f"`{name}` must be a whole number above 0, got {count}.")
        if not isinstance(guidance_scale, numbers.Real) or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, got {guidance_scale}.")
        if not isinstance(guidance_rescale, numbers.Real) or not 0 <= guidance_rescale <= 1:
            raise ValueError(f"`guidance_rescale` must be in 0..1, got {guidance_rescale}.")
        if output_type not in output_types:
            raise ValueError(f"`output_type` must be one of {', '.join(output_types)}, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got"
                f" {sorted(unknown)}."
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str | TimedPrompt | None] | TimedPrompt | None = None,
        negative_prompt: str | list[str] | None = None,
        video: Any = None,
        image: Any = None,
        audio: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        condition_embeds: torch.Tensor | None = None,
        negative_condition_embeds: torch.Tensor | None = None,
        audio_length_in_s: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        audio_padding_side: str = "right",
        window_overlap_in_s: float | None = None,
        window_batch_size: int = 4,
        attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[["AudioXPipeline", int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
    ) -> AudioPipelineOutput | tuple:
        r"""
        Make sound for any mix of prompts. A list makes a batch, in which each item may be `None`; a single item goes
        with all of a longer list.

        A sound of up to one window is cut from one. A longer one is made in windows that overlap and are denoised
        together (MultiDiffusion, arXiv 2302.08113), each for its own seconds of the prompts; memory does not grow with
        the length, but for the latents, the contexts and what is returned, which `output_type="stream"` avoids.

        Args:
            prompt (`str`, `list[str]` or `list[tuple[float, float, str]]`, *optional*): what to hear. Without it a
                sample with a picture is given `"Generate general audio for the video"`, as in training. A list of
                `(start, end, text)` says what to hear when, in seconds; its spans follow each other over the whole
                sound, and one text fades into the next over a second.
            negative_prompt (`str` or `list[str]`, *optional*): what not to hear. It stands, without video and audio,
                in the place of the null context of guidance.
            video (*optional*): a path, or frames at the model's rate; see [`~AudioXPipeline.encode_video`]. Of one
                that is longer than a sound of one window that window is used, with a warning; the last frame of a
                shorter one stays.
            image (*optional*): a path or a picture, shown as a still video.
            audio (*optional*): a sound to continue or to fill, as a path or `(waveform, rate)`; see
                [`~AudioXPipeline.encode_audio`]. Each window of a longer sound is given its own seconds of it.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `[B, num_text_tokens, width]`, *optional*):
                in the place of the texts; see [`~AudioXPipeline.encode_prompt`].
            condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): in the place of all prompts;
                see [`~AudioXPipeline.encode_conditions`].
            negative_condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): in the place of the
                null context, which is all zeros.
            audio_length_in_s (`float`, *optional*): seconds of sound, above 0; by default those of a timed prompt, or
                10, or the window where that is shorter.
            num_inference_steps (`int`, *optional*): denoising steps, one model call each; by default those of the
                release, `config.default_num_inference_steps`.
            guidance_scale (`float`, *optional*): weight of classifier-free guidance on the predicted velocity, off at
                1 and below; by default that of the release, `config.default_guidance_scale`.
            guidance_rescale (`float`): how much of the guided prediction's standard deviation is brought back, 0..1.
            num_waveforms_per_prompt (`int`): sounds for each sample, next to each other in the output.
            generator (`torch.Generator` or one for each sound, *optional*): makes the result reproducible. With a list
                each sound is the same whatever batch it is made in.
            latents (`torch.Tensor` of shape `[B, in_channels, L]`, *optional*): unit noise to start from, of
                `sample_size` frames, or as many as a longer sound has.
            audio_padding_side (`str`): where silence is added to a short `audio`, `"right"` or `"left"`.
            window_overlap_in_s (`float`, *optional*): seconds that the windows of a longer sound overlap by at least;
                by default a quarter of a window.
            window_batch_size (`int`): windows of each sound that run at a time. It bounds memory.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales LoRA layers.
            output_type (`str`): `"np"`, `"pt"`, `"latent"`, or `"stream"` for an iterator.
            return_dict (`bool`): whether to return an [`~pipelines.AudioPipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `(pipe, step, timestep, tensors)` after each step;
                what it returns replaces the tensors. Setting `pipe._interrupt = True` ends the loop.
            callback_on_step_end_tensor_inputs (`list[str]`): which tensors it is given.

        Returns:
            [`~pipelines.AudioPipelineOutput`] or `tuple`: `audios`, float32 `[B, channels, samples]` at
            `vae.config.sampling_rate`, not normalised and not clipped; latents `[B, in_channels, L]` for `"latent"`;
            for `"stream"` an iterator of numpy arrays `[B, channels, n]`, each decoded when it is asked for.

        Raises:
            ValueError: naming the argument that is wrong.

        Examples:
        """
        # 1. Check the inputs.
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        if guidance_scale is None:
            guidance_scale = self.config.default_guidance_scale
        if audio_length_in_s is None:
            audio_length_in_s = self.default_length_in_s(prompt)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(
            prompt,
            negative_prompt,
            video,
            image,
            audio,
            prompt_embeds,
            negative_prompt_embeds,
            condition_embeds,
            negative_condition_embeds,
            audio_length_in_s,
            num_inference_steps,
            guidance_scale,
            guidance_rescale,
            num_waveforms_per_prompt,
            window_batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self.check_lora_scale(attention_kwargs)
        if audio_padding_side not in ("left", "right"):
            raise ValueError(f"`audio_padding_side` must be 'left' or 'right', got {audio_padding_side!r}.")
        overlap = self.overlap_frames(window_overlap_in_s)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        device = self._execution_device
        num_samples = round(audio_length_in_s * self.vae.config.sampling_rate)
        num_frames = max(self.transformer.config.sample_size, math.ceil(num_samples / self.vae.hop_length))

        # 2. Encode the prompts into the context of each window.
        windows, condition_embeds = self._encode(
            prompt,
            video,
            image,
            audio,
            prompt_embeds,
            condition_embeds,
            generator,
            audio_padding_side,
            num_waveforms_per_prompt,
            window_starts(num_frames, self.transformer.config.sample_size, overlap),
            overlap,
            num_samples,
            device,
        )
        condition_embeds = condition_embeds.to(self.transformer.dtype)
        num_sounds = 1 + max(window.sound for window in windows)
        if isinstance(generator, list) and len(generator) != num_sounds:
            raise ValueError(f"`generator` is a list of {len(generator)}, for {num_sounds} sounds.")
        negative_condition_embeds = self.encode_negative(
            negative_prompt,
            negative_prompt_embeds,
            negative_condition_embeds,
            num_sounds,
            num_waveforms_per_prompt,
            condition_embeds,
            device,
        )

        # 3. Lay out the noise levels and start from noise.
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_begin_index(0)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        latents = self.prepare_latents(num_sounds, device, generator, latents, num_frames)

        # 4. Denoise.
        sampling = Sampling(
            guidance_rescale,
            window_batch_size,
            generator,
            attention_kwargs,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        latents = self.denoise(latents, timesteps, windows, condition_embeds, negative_condition_embeds, sampling)

        # 5. Decode, and cut to the length asked for.
        if output_type == "stream":
            audios = self.stream_latents(latents, num_samples)
        elif output_type == "latent":
            audios = latents
        elif output_type == "pt":
            audios = torch.cat(list(self._decode(latents, num_samples)), dim=-1)
        else:
            pieces = [piece.cpu().numpy() for piece in self._decode(latents, num_samples)]
            audios = np.concatenate(pieces, axis=-1)

        if output_type != "stream":
            self.maybe_free_model_hooks()
        if not return_dict:
            return (audios,)
        return AudioPipelineOutput(audios=audios)

    def default_length_in_s(self, prompt: Any) -> float:
        """Seconds of a sound of which is not said how long it is."""
        timed = [item for item in split_prompts(prompt) or [] if is_timed(item)]
        if timed:
            check_timed_prompt(timed[0])
            return timed[0][-1][1]
        return min(10.0, self.window_samples / self.vae.config.sampling_rate)

    def _encode(
        self,
        prompt: Any,
        video: Any,
        image: Any,
        audio: Any,
        prompt_embeds: torch.Tensor | None,
        condition_embeds: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        audio_padding_side: str,
        num_waveforms_per_prompt: int,
        starts: list[int],
        overlap: int,
        num_samples: int,
        device: torch.device,
    ) -> tuple[list[Window], torch.Tensor]:
        """The windows of all sounds, and the contexts that they refer to."""
        prompts = split_prompts(prompt)
        same_throughout = condition_embeds is not None
        if condition_embeds is not None:
            condition_embeds = condition_embeds.repeat_interleave(num_waveforms_per_prompt, dim=0).to(device)
        elif len(starts) == 1 and not any(is_timed(item) for item in prompts or []):
            same_throughout = True
            condition_embeds = self.encode_conditions(
                prompts,
                video,
                image,
                audio,
                prompt_embeds,
                generator,
                audio_padding_side,
                num_waveforms_per_prompt,
                device,
            )
        if same_throughout:
            weights = window_weights(starts, self.transformer.config.sample_size, overlap)
            grid = zip(starts, weights, strict=True)
            sounds = range(len(condition_embeds))
            return [Window(i, start, weight, i) for start, weight in grid for i in sounds], condition_embeds

        items = self.broadcast_prompts(
            prompts, video, image, audio, prompt_embeds, generator, num_waveforms_per_prompt
        )
        self.check_features(items["video"], num_samples)
        rate, channels = self.vae.config.sampling_rate, self.vae.config.audio_channels
        read = {id(item): item for item in items["audio"] if item is not None}
        for key, item in read.items():
            read[key] = read_audio(item, rate, channels, num_samples, audio_padding_side, "the sound asked for")
        items["audio"] = [None if item is None else read[id(item)] for item in items["audio"]]
        starts = [starts] * len(items["prompt"])
        return self.encode_windows(items, starts, overlap, generator=generator, device=device)

    def encode_negative(
        self,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: torch.Tensor | None,
        negative_condition_embeds: torch.Tensor | None,
        num_sounds: int,
        num_waveforms_per_prompt: int,
        condition_embeds: torch.Tensor,
        device: torch.device,
    ) -> torch.Tensor:
        """
        The contexts that guidance leads away from, `[num_sounds, tokens, width]`: of negative prompts, or all zeros.
        `condition_embeds` tell their shape.
        """
        negatives = (negative_prompt, negative_prompt_embeds, negative_condition_embeds)
        if not self.do_classifier_free_guidance and any(value is not None for value in negatives):
            logger.warning(f"Negative prompts need guidance above 1; at {self.guidance_scale:g} they have no effect.")
        if negative_prompt is not None or negative_prompt_embeds is not None:
            _, negative_prompt_embeds = self.encode_prompt(
                negative_prompt=negative_prompt, device=device, negative_prompt_embeds=negative_prompt_embeds
            )
            negative_condition_embeds = self.encode_conditions(prompt_embeds=negative_prompt_embeds, device=device)
        elif negative_condition_embeds is None:
            negative_condition_embeds = torch.zeros_like(condition_embeds[:1])
        if negative_condition_embeds.shape[0] == 1:
            negative_condition_embeds = negative_condition_embeds.expand(num_sounds, -1, -1)
        elif negative_condition_embeds.shape[0] != num_sounds:
            negative_condition_embeds = negative_condition_embeds.repeat_interleave(num_waveforms_per_prompt, dim=0)
        shape = (num_sounds, *condition_embeds.shape[1:])
        if negative_condition_embeds.shape != shape:
            raise ValueError(
                f"The negative prompts give a context of shape {list(negative_condition_embeds.shape)}, the prompts one"
                f" of {list(shape)}."
            )
        return negative_condition_embeds.to(device, self.transformer.dtype)

    def stream_latents(self, latents: torch.Tensor, num_samples: int) -> Iterator[np.ndarray]:
        """
        Decode the latents that a call with `output_type="latent"` returns, piece by piece.

        Args:
            latents: `[B, in_channels, L]`.
            num_samples: how many to cut the sound to.

        Returns:
            An iterator of float32 arrays `[B, channels, n]`, each decoded when it is asked for.
        """
        return self._stream(self._decode(latents, num_samples))

    def _stream(self, pieces: Iterator[torch.Tensor]) -> Iterator[np.ndarray]:
        """Pieces as numpy arrays; offloading goes on when they are read, or no longer wanted."""
        try:
            while True:
                with torch.no_grad():
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece.cpu().numpy()
        finally:
            # An interpreter that shuts down takes a half-read stream apart when there is no pipeline any more.
            if not sys.is_finalizing():
                self.maybe_free_model_hooks()

    def _decode(self, latents: torch.Tensor, num_samples: int) -> Iterator[torch.Tensor]:
        """The first samples of a sound, in one piece where it is one window, else in tiles; float32."""
        if latents.shape[-1] <= self.transformer.config.sample_size:
            yield self.vae.decode(latents).sample[..., :num_samples].float()
            return
        frames = math.ceil(num_samples / self.vae.hop_length)
        for piece in decode_tiles(self.vae, latents, end=frames):
            yield piece[..., :num_samples]
            num_samples -= piece.shape[-1]
