"""Generate sound and music from any mix of text, video, image and audio."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AudioPipelineOutput, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPVisionModelWithProjection, PreTrainedTokenizerBase, T5EncoderModel

from ..diffusers_registry import RegisteredPipelineMixin
from ..loaders import AudioXLoraLoaderMixin, check_encoders
from ..models import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
from ..schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from .checks import check_choice, check_count, check_duration, check_generator, check_tensor, is_number
from .denoising import AudioXDenoisingMixin, Conditions, Sampling
from .guidance import check_guider
from .inputs import read_audio
from .prompts import Prompts
from .vae_tiles import decode_tiles
from .window_conditions import AudioXWindowConditioningMixin
from .windows import TimedPrompt, Window, is_timed, split_prompts, window_starts, window_weights

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
    Pipeline that generates sound and music from any mix of text, video, image and audio with AudioX (arXiv 2503.10522).

    Args:
        vae ([`AudioXAutoencoderOobleck`]): Encodes waveforms to latents and decodes latents to waveforms.
        text_encoder ([`~transformers.T5EncoderModel`] or `None`): T5. Without it, pass `prompt_embeds`.
        tokenizer ([`~transformers.T5Tokenizer`] or `None`): Tokenizer that pads to its `model_max_length`.
        image_encoder ([`~transformers.CLIPVisionModelWithProjection`] or `None`): CLIP, for video and images.
        sync_encoder ([`SynchformerVisionModel`] or `None`): Synchformer, for models that follow the timing of a video.
        conditioner ([`AudioXConditioner`]): Joins the embeddings of all modalities into one context.
        transformer ([`AudioXTransformer2DModel`]): Predicts the velocity of noisy latents.
        scheduler ([`AudioXDPMSolverSDEScheduler`] or [`AudioXFlowMatchScheduler`]): Sets the noise levels and steps
            between them.
        default_num_inference_steps (`int`): Default of `num_inference_steps` in a call.
        default_guidance_scale (`float`): Default of `guidance_scale` in a call.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->sync_encoder->conditioner->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "image_encoder", "sync_encoder"]

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
        self._initial_scheduler = scheduler
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
        Load a pipeline from a folder, from the Hub, or by name, see [`~DiffusionPipeline.from_pretrained`]. The names
        are `"audiox-tiny"`, the small model that comes with the package, and those of the releases, such as
        `"audiox"`, which are downloaded and converted on first use. A folder of that name comes first.

        Raises:
            ValueError: If the weights of a component do not match its config.
        """
        source = os.fspath(pretrained_model_name_or_path)
        pipe = super().from_pretrained(source, **kwargs)
        loaded = {name: component for name, component in pipe.components.items() if name not in kwargs}
        check_encoders(pipe.download, source, loaded, **kwargs)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """
        Create a pipeline of this class that shares the components and defaults of another one. Keyword arguments
        replace components. Unlike in other pipelines, nothing is cast to float32 unless `dtype` asks for it.
        """
        if "dtype" in kwargs or "torch_dtype" in kwargs:
            return super().from_pipe(pipeline, **kwargs)
        names = ("default_num_inference_steps", "default_guidance_scale")
        return cls(**{**pipeline.components, **{name: pipeline.config[name] for name in names}, **kwargs})

    @property
    def window_samples(self) -> int:
        """Samples per window, the length that the transformer generates at a time."""
        return self.transformer.config.sample_size * self.vae.hop_length

    def default_length_in_s(self, prompt: Any) -> float:
        """Default duration in seconds: the end of a timed prompt, else 10 s or the window, whichever is shorter."""
        for text in split_prompts(prompt) or []:
            if is_timed(text):
                return text[-1][1]
        return min(10.0, self.window_samples / self.vae.config.sampling_rate)

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
        guidance_scale: float | dict[str, float] | None = None,
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
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        negative_video: Any = None,
        negative_audio: Any = None,
    ) -> AudioPipelineOutput | tuple:
        r"""
        Generate audio from any mix of prompts. Lists make a batch; their items may be `None`, and a single item goes
        with each item of a longer list.

        Audio of up to one window is cut from a window. Longer audio is generated in overlapping windows that are
        denoised together (MultiDiffusion, arXiv 2302.08113), each with its own seconds of the prompts. Memory grows
        with the length only by the latents, the contexts and the returned audio; `output_type="stream"` avoids the
        last.

        Args:
            prompt (`str`, `list[str]` or `list[tuple[float, float, str]]`, *optional*): Text that describes the sound.
                Without it, a sample with a video or an image gets `"Generate general audio for the video"`, as in
                training. A list of `(start, end, text)`, in seconds, changes the text over time. Its spans start at 0
                and follow each other without gaps, and texts fade into each other over a second.
            negative_prompt (`str` or `list[str]`, *optional*): Text that describes what to avoid. Guidance leads away
                from it, without video and audio, instead of from the null context.
            video (*optional*): A path, or frames at the model's rate; see [`~AudioXPipeline.encode_video`]. The last
                frame of a short video is repeated. A video that is longer than a window is cut, with a warning,
                if the audio is not.
            image (*optional*): A path or a picture, used as a still video.
            audio (*optional*): Sound to continue or to fill in, as a path or `(waveform, rate)`; see
                [`~AudioXPipeline.encode_audio`]. Each window of longer audio gets its own seconds.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `[B, num_text_tokens, width]`, *optional*):
                Embeddings that replace the texts; see [`~AudioXPipeline.encode_prompt`].
            condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): Contexts that replace all
                prompts; see [`~AudioXPipeline.encode_conditions`].
            negative_condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): Contexts that replace
                the null context, which is all zeros.
            audio_length_in_s (`float`, *optional*): Duration in seconds, above 0. Defaults to that of a timed prompt,
                or 10, or a window if that is shorter.
            num_inference_steps (`int`, *optional*): Number of denoising steps. Defaults to
                `config.default_num_inference_steps`, which each release sets.
            guidance_scale (`float` or `dict[str, float]`, *optional*): Scale of classifier-free guidance on the
                velocity; 1 and below turn it off. Defaults to `config.default_guidance_scale`. A dict such as
                `{"text": 3, "video": 7}` weights each modality against the context without it, or with its negative
                prompt instead; modalities that it does not name have weight 1. Each weight other than 1 adds a pass of the transformer.
            guidance_rescale (`float`): Share in 0..1 by which the standard deviation of the guided prediction is
                brought back to that of the conditional one.
            num_waveforms_per_prompt (`int`): Sounds per sample, next to each other in the output.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Makes the result reproducible. With a
                list, one for each sound, a sound does not depend on its batch.
            latents (`torch.Tensor` of shape `[B, in_channels, L]`, *optional*): Unit noise to start from, of
                `sample_size` frames, or as many as longer audio needs.
            audio_padding_side (`str`): Where a short `audio` is padded with silence, `"right"` or `"left"`.
            window_overlap_in_s (`float`, *optional*): Least overlap of windows in seconds. Defaults to a quarter of a
                window.
            window_batch_size (`int`): Windows of each sound that run at a time, which bounds memory.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales LoRA layers.
            output_type (`str`): `"np"`, `"pt"`, `"latent"`, or `"stream"` for an iterator.
            return_dict (`bool`): Whether to return an [`~pipelines.AudioPipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): Function that is called as `(pipe, step, timestep, tensors)`
                after each step. The tensors that it returns replace the old ones. `pipe._interrupt = True` ends the
                loop.
            callback_on_step_end_tensor_inputs (`list[str]`): Names of the tensors that it gets.
            guidance_interval (`tuple[float, float]`, *optional*): Times in 0 (clean) to 1 (noise) between which
                guidance is on (arXiv 2404.07724). All other steps take one pass of the transformer.
            guider (`BaseGuidance`, *optional*): `ClassifierFreeGuidance`, `AdaptiveProjectedGuidance` or
                `ClassifierFreeZeroStarGuidance` of diffusers, which replaces `guidance_scale` and `guidance_rescale`.
                Adaptive projected guidance works on the denoised sample (arXiv 2410.02416), CFG-Zero* on the velocity
                of rectified flow (arXiv 2503.18886).
            negative_video, negative_audio (*optional*): Video and sound to avoid, in the forms of `video` and `audio`.
                Together with `negative_prompt` they make one negative context; with weights by modality, each replaces
                the prompt of its own modality. Longer audio uses their first window.

        Returns:
            [`~pipelines.AudioPipelineOutput`] or `tuple`: `audios`, float32 `[B, channels, samples]` at
            `vae.config.sampling_rate`, neither normalised nor clipped; latents `[B, in_channels, L]` for `"latent"`;
            for `"stream"` an iterator of numpy arrays `[B, channels, n]` that are decoded on demand.

        Raises:
            ValueError: An argument is wrong; the message names it.

        Examples:
        """
        # 1. Check the inputs.
        self.check_components()
        prompts = Prompts.collect(
            prompt=prompt,
            negative_prompt=negative_prompt,
            video=video,
            image=image,
            audio=audio,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            condition_embeds=condition_embeds,
            negative_condition_embeds=negative_condition_embeds,
            audio_padding_side=audio_padding_side,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            negative_video=negative_video,
            negative_audio=negative_audio,
        )
        sampling = self.prepare_sampling(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            window_overlap=self.overlap_frames(window_overlap_in_s),
            window_batch_size=window_batch_size,
            generator=generator,
            attention_kwargs=attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            guidance_interval=guidance_interval,
            guider=guider,
        )
        if audio_length_in_s is None:
            audio_length_in_s = self.default_length_in_s(prompts.text)
        self.check_prompts(prompts, sampling, audio_length_in_s)
        check_choice("output_type", output_type, ("np", "pt", "latent", "stream"))
        num_samples = round(audio_length_in_s * self.vae.config.sampling_rate)
        num_frames = max(self.transformer.config.sample_size, math.ceil(num_samples / self.vae.hop_length))
        device = self._execution_device

        with self.begin_call(sampling) as pipe:
            # 2. Encode the prompts into the context of each window.
            if sampling.weights:
                prompts = pipe.embed_negatives(prompts, generator, device)
            windows, contexts = pipe._encode(prompts, sampling, num_samples, num_frames)
            negative_condition_embeds = pipe.encode_negative(prompts, contexts[:, 0], generator)
            conditions = Conditions.split(windows, contexts, negative_condition_embeds, sampling)

            # 3. Set the noise levels and draw noise.
            pipe.scheduler.set_timesteps(sampling.num_inference_steps, device=device)
            pipe.scheduler.set_begin_index(0)
            timesteps = pipe.scheduler.timesteps
            pipe._num_timesteps = len(timesteps)
            latents = pipe.prepare_latents(len(prompts), device, generator, latents, num_frames)

            # 4. Denoise.
            latents = pipe.denoise(latents, timesteps, conditions, sampling)
            pipe.check_finite(latents)

        # 5. Decode the length asked for.
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

    def prepare_sampling(
        self,
        *,
        num_inference_steps: int | None,
        guidance_scale: float | dict[str, float] | None,
        guider: BaseGuidance | None,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str],
        **kwargs: Any,
    ) -> Sampling:
        """Build [`Sampling`] from the arguments of a call, with defaults filled in, and check it."""
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        if guider is not None:
            check_guider(guider)
            if guidance_scale is not None:
                raise ValueError("Give either `guidance_scale` or `guider`, which has a scale of its own.")
            guidance_scale = guider.guidance_scale
        elif guidance_scale is None:
            guidance_scale = self.config.default_guidance_scale
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        sampling = Sampling(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guider=guider,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            **kwargs,
        )
        self.check_sampling(sampling)
        self.check_lora_scale(sampling.attention_kwargs)
        return sampling

    def overlap_frames(self, window_overlap_in_s: float | None) -> int:
        """Return the overlap of windows in latent frames; `ValueError` unless it is at least 1 and below a window."""
        window = self.transformer.config.sample_size
        if window_overlap_in_s is None:
            return max(1, window // 4)
        frame_rate = self.vae.config.sampling_rate / self.vae.hop_length
        if not is_number(window_overlap_in_s) or not 1 <= window_overlap_in_s * frame_rate <= window - 1:
            raise ValueError(
                f"`window_overlap_in_s` must be at least {1 / frame_rate:.4g} and at most"
                f" {(window - 1) / frame_rate:.4g} s, got {window_overlap_in_s}."
            )
        return round(window_overlap_in_s * frame_rate)

    def check_components(self) -> None:
        """Raise `ValueError` if a component that every call needs is missing, or the scheduler does not fit."""
        self.require("vae", "conditioner", "transformer", "scheduler")
        if not isinstance(self.scheduler, AudioXDPMSolverSDEScheduler | AudioXFlowMatchScheduler):
            raise ValueError(
                f"`scheduler` is {type(self.scheduler).__name__}, whose noise levels and times are not those of AudioX."
                " Use AudioXDPMSolverSDEScheduler (for AudioX, AudioX-MAF and others that predict v), or"
                " AudioXFlowMatchScheduler (for AudioX-Turbo and others trained with rectified flow)."
            )
        initial = self._initial_scheduler or self.scheduler
        if isinstance(initial, AudioXFlowMatchScheduler) != isinstance(self.scheduler, AudioXFlowMatchScheduler):
            logger.warning(
                f"`scheduler` is {type(self.scheduler).__name__}, and the pipeline was created with"
                f" {type(initial).__name__}. A transformer works with only one of them."
            )

    def check_prompts(
        self, prompts: Prompts, sampling: Sampling, audio_length_in_s: float, length_name: str = "audio_length_in_s"
    ) -> None:
        """
        Raise `ValueError` if prompts do not fit the model, the generators or the duration. `length_name` is the
        argument that sets the duration.
        """
        rate, text_width = self.vae.config.sampling_rate, self.conditioner.config.condition_dim
        check_duration(length_name, audio_length_in_s, rate, len(prompts))
        check_generator(sampling.generator, len(prompts))
        self._check_weights(prompts, sampling)
        for timed in filter(is_timed, prompts.text):
            if abs(timed[-1][1] - audio_length_in_s) * rate >= 1:
                raise ValueError(
                    f"`prompt`: the spans end at {timed[-1][1]:g} s, and the sound is {audio_length_in_s:g} s long."
                )
        text_shape = ("B", self.conditioner.config.num_text_tokens, text_width)
        context_shape = ("B", "tokens", self.transformer.config.cross_attention_input_dim)
        if prompts.text_embeds[0] is not None:
            check_tensor("prompt_embeds", torch.stack(prompts.text_embeds), text_shape)
        for name, embeds, shape in (
            ("negative_prompt_embeds", prompts.negative_text_embeds, text_shape),
            ("condition_embeds", prompts.condition_embeds, context_shape),
            ("negative_condition_embeds", prompts.negative_condition_embeds, context_shape),
        ):
            if embeds is not None:
                check_tensor(name, embeds, shape)

    def _check_weights(self, prompts: Prompts, sampling: Sampling) -> None:
        """Raise `ValueError` if guidance by modality does not fit the prompts."""
        if not isinstance(sampling.guidance_scale, Mapping):
            return
        if prompts.condition_embeds is not None:
            raise ValueError("`guidance_scale` must be a number with `condition_embeds`, which joins all modalities.")
        if prompts.negative_condition_embeds is not None:
            raise ValueError(
                "`guidance_scale` must be a number with `negative_condition_embeds`, which joins all modalities."
            )
        for modality, name in prompts.negatives.items():
            if modality not in sampling.weights:
                raise ValueError(
                    f"`{name}` has no effect: `guidance_scale` needs a weight for {modality} other than 1, got"
                    f" {dict(sampling.guidance_scale)}."
                )
        given = {name for sound in range(len(prompts)) for name in prompts.modalities(sound)}
        for name in sampling.guidance_scale:
            if name not in given and name not in prompts.negatives:
                raise ValueError(f"`guidance_scale` has a weight for {name}, but no sound has a prompt of that kind.")

    def _encode(
        self, prompts: Prompts, sampling: Sampling, num_samples: int, num_frames: int
    ) -> tuple[list[Window], torch.Tensor]:
        """Return the windows of all sounds, and their contexts as [`~AudioXPipeline.encode_windows`] does."""
        size, overlap, device = self.transformer.config.sample_size, sampling.window_overlap, self._execution_device
        starts = window_starts(num_frames, size, overlap)
        if prompts.condition_embeds is not None:
            condition_embeds = prompts.condition_embeds[:, None].to(device)
        elif len(starts) == 1 and not prompts.is_timed:
            condition_embeds = self._encode_window(prompts, sampling.generator, device, list(sampling.weights))
        else:
            self.check_features(prompts.video, num_samples)
            prompts = replace(prompts, audio=self._read_audio(prompts, num_samples))
            windows, condition_embeds = self.encode_windows(prompts, [starts] * len(prompts), sampling, device)
            return windows, condition_embeds.to(self.transformer.dtype)

        grid = zip(starts, window_weights(starts, size, overlap), strict=True)
        windows = [Window(i, start, weight, i) for start, weight in grid for i in range(len(prompts))]
        return windows, condition_embeds.to(self.transformer.dtype)

    def _read_audio(self, prompts: Prompts, num_samples: int) -> list[torch.Tensor | None]:
        """Read each audio prompt of a longer sound once, cut or padded to its length."""
        rate, channels = self.vae.config.sampling_rate, self.vae.config.audio_channels
        read = {id(audio): audio for audio in prompts.audio if audio is not None}
        for key, audio in read.items():
            read[key] = read_audio(
                audio, rate, channels, num_samples, prompts.audio_padding_side, "the sound asked for"
            )
        return [None if audio is None else read[id(audio)] for audio in prompts.audio]

    def encode_negative(
        self,
        prompts: Prompts,
        condition_embeds: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """
        Encode the negative prompts, from which guidance leads away. Without any, and with guidance by modality, which
        does not use them, they are all zeros.

        Args:
            prompts (`Prompts`): Prompts of the call.
            condition_embeds (`torch.Tensor` of shape `[rows, tokens, width]`): Contexts, for their shape.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Seeds the posterior's noise of
                negative audio.

        Returns:
            `torch.Tensor`: `[sounds, tokens, width]`.
        """
        by_modality = isinstance(self.guidance_scale, Mapping)
        if not by_modality and not self.do_classifier_free_guidance and prompts.has_negatives:
            logger.warning(
                f"Negative prompts have no effect without guidance; `guidance_scale` is {self.guidance_scale} and must"
                " be above 1."
            )
        device, text_embeds, embeds = self._execution_device, prompts.negative_text_embeds, None
        if by_modality:
            return torch.zeros(len(prompts), *condition_embeds.shape[1:], device=device, dtype=self.transformer.dtype)
        if prompts.negative_text is not None:
            _, text_embeds = self.encode_prompt(negative_prompt=prompts.negative_text, device=device)
        media = prompts.negative_video, prompts.negative_audio
        if any(items is not None for items in media):
            each = prompts.for_each_sound
            embeds = self.encode_conditions(
                prompt_embeds=None if text_embeds is None else torch.stack(each(list(text_embeds))),
                video=None if media[0] is None else each(media[0]),
                audio=None if media[1] is None else each(media[1]),
                generator=generator,
                device=device,
            )
        elif text_embeds is not None:
            embeds = self.encode_conditions(prompt_embeds=text_embeds, device=device)
        elif prompts.negative_condition_embeds is not None:
            embeds = prompts.negative_condition_embeds
        else:
            embeds = torch.zeros_like(condition_embeds[:1])
        if len(embeds) == 1:
            embeds = embeds.expand(len(prompts), -1, -1)
        elif len(embeds) != len(prompts):
            embeds = embeds.repeat_interleave(prompts.num_waveforms_per_prompt, dim=0)
        shape = (len(prompts), *condition_embeds.shape[1:])
        if embeds.shape != shape:
            raise ValueError(
                f"The negative prompts give a context of shape {list(embeds.shape)}, the prompts one of {list(shape)}."
            )
        return embeds.to(device, self.transformer.dtype)

    def prepare_latents(
        self,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        num_frames: int | None = None,
    ) -> torch.Tensor:
        """Return unit noise `[batch_size, C, L]`, drawn or given, scaled to the first noise level; float32."""
        check_generator(generator, batch_size)
        num_frames = num_frames or self.transformer.config.sample_size
        shape = (batch_size, self.transformer.config.in_channels, num_frames)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        else:
            check_tensor("latents", latents, shape)
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def stream_latents(self, latents: torch.Tensor, num_samples: int) -> Iterator[np.ndarray]:
        """
        Decode the latents that a call with `output_type="latent"` returns, piece by piece.

        Args:
            latents (`torch.Tensor` of shape `[B, in_channels, L]`): Latents.
            num_samples (`int`): Length of the sound in samples.

        Returns:
            Iterator of float32 arrays `[B, channels, n]`, each decoded on demand.
        """
        check_tensor("latents", latents, ("B", self.transformer.config.in_channels, "L"))
        check_count("num_samples", num_samples)
        return self._stream(self._decode(latents, num_samples))

    def _stream(self, pieces: Iterator[torch.Tensor]) -> Iterator[np.ndarray]:
        """Yield pieces as numpy arrays, and free the offload hooks when the iterator ends or is dropped."""
        # At interpreter exit modules lose their names, and the pipeline may be gone, before a half-read stream ends.
        is_finalizing = sys.is_finalizing
        try:
            while True:
                with torch.no_grad():
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece.cpu().numpy()
        finally:
            if not is_finalizing():
                self.maybe_free_model_hooks()

    def _decode(self, latents: torch.Tensor, num_samples: int) -> Iterator[torch.Tensor]:
        """Decode the first samples of a sound: one window at once, a longer sound in tiles; float32."""
        if latents.shape[-1] <= self.transformer.config.sample_size:
            yield self.vae.decode(latents).sample[..., :num_samples].float()
            return
        frames = math.ceil(num_samples / self.vae.hop_length)
        for piece in decode_tiles(self.vae, latents, end=frames):
            yield piece[..., :num_samples]
            num_samples -= piece.shape[-1]
