"""Sound and music from any mix of text, video, image and audio."""

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AudioPipelineOutput, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPVisionModelWithProjection, PreTrainedTokenizerBase, T5EncoderModel

from ..diffusers_registry import RegisteredPipelineMixin
from ..loaders import AudioXLoraLoaderMixin
from ..models import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
from ..schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from .conditioning import AudioXConditioningMixin

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


def rescale_guidance(guided: torch.Tensor, conditional: torch.Tensor, guidance_rescale: float) -> torch.Tensor:
    """
    Bring the guided prediction back to the standard deviation that the conditional one has over its channels (arXiv
    2305.08891, section 3.4, with the channel axis instead of the whole sample), mixed in by `guidance_rescale`.

    Args:
        guided, conditional: `[B, C, L]`.
        guidance_rescale: 0 (nothing changes) to 1.
    """
    rescaled = guided * (conditional.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True))
    return guided + guidance_rescale * (rescaled - guided)


class AudioXPipeline(RegisteredPipelineMixin, AudioXLoraLoaderMixin, AudioXConditioningMixin, DiffusionPipeline):
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

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def window_samples(self) -> int:
        """Samples of one window: the longest sound that one call makes."""
        return self.transformer.config.sample_size * self.vae.hop_length

    def prepare_latents(
        self,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit noise `[batch_size, C, L]`, drawn or given, scaled to the first noise level; float32."""
        shape = (batch_size, self.transformer.config.in_channels, self.transformer.config.sample_size)
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
        output_type,
        callback_on_step_end_tensor_inputs,
    ) -> None:
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text is not None and embeds is not None:
                raise ValueError(f"Give either `{name}` or `{name}_embeds`, not both.")
            texts = text if isinstance(text, list) else [text]
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

        window = self.window_samples / self.vae.config.sampling_rate
        if audio_length_in_s is not None:
            samples = audio_length_in_s * self.vae.config.sampling_rate
            if not 1 <= samples <= self.window_samples:
                raise ValueError(
                    f"`audio_length_in_s` must be above 0 and at most {window:.4g} s, the model's window; got"
                    f" {audio_length_in_s}."
                )
        for name, count in (
            ("num_inference_steps", num_inference_steps),
            ("num_waveforms_per_prompt", num_waveforms_per_prompt),
        ):
            if not isinstance(count, numbers.Integral) or count < 1:
                raise ValueError(f"`{name}` must be a whole number above 0, got {count}.")
        if not isinstance(guidance_scale, numbers.Real) or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, got {guidance_scale}.")
        if not isinstance(guidance_rescale, numbers.Real) or not 0 <= guidance_rescale <= 1:
            raise ValueError(f"`guidance_rescale` must be in 0..1, got {guidance_rescale}.")
        if output_type not in ("np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'np', 'pt' or 'latent', got {output_type!r}.")
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
        prompt: str | list[str | None] | None = None,
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
        with all of a longer list. A whole window is always generated and then cut to the length asked for.

        Args:
            prompt (`str` or `list[str]`, *optional*): what to hear. Without it a sample with a picture is given
                `"Generate general audio for the video"`, as in training.
            negative_prompt (`str` or `list[str]`, *optional*): what not to hear. It stands, without video and audio,
                in the place of the null context of guidance.
            video (*optional*): a path, or frames at the model's rate; see [`~AudioXPipeline.encode_video`]. Of a
                longer one the first window is used, with a warning.
            image (*optional*): a path or a picture, shown as a still video.
            audio (*optional*): a sound to continue or to fill, as a path or `(waveform, rate)`; see
                [`~AudioXPipeline.encode_audio`].
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `[B, num_text_tokens, width]`, *optional*):
                in the place of the texts; see [`~AudioXPipeline.encode_prompt`].
            condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): in the place of all prompts;
                see [`~AudioXPipeline.encode_conditions`].
            negative_condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`, *optional*): in the place of the
                null context, which is all zeros.
            audio_length_in_s (`float`, *optional*): seconds of sound, above 0 and at most one window; by default 10,
                or the window where that is shorter.
            num_inference_steps (`int`, *optional*): denoising steps, one model call each; by default those of the
                release, `config.default_num_inference_steps`.
            guidance_scale (`float`, *optional*): weight of classifier-free guidance on the predicted velocity, off at
                1 and below; by default that of the release, `config.default_guidance_scale`.
            guidance_rescale (`float`): how much of the guided prediction's standard deviation is brought back, 0..1.
            num_waveforms_per_prompt (`int`): sounds for each sample, next to each other in the output.
            generator (`torch.Generator` or one for each sound, *optional*): makes the result reproducible. With a list
                each sound is the same whatever batch it is made in.
            latents (`torch.Tensor` of shape `[B, in_channels, sample_size]`, *optional*): unit noise to start from.
            audio_padding_side (`str`): where silence is added to a short `audio`, `"right"` or `"left"`.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales LoRA layers.
            output_type (`str`): `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`): whether to return an [`~pipelines.AudioPipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): called as `(pipe, step, timestep, tensors)` after each step;
                what it returns replaces the tensors. Setting `pipe._interrupt = True` ends the loop.
            callback_on_step_end_tensor_inputs (`list[str]`): which tensors it is given.

        Returns:
            [`~pipelines.AudioPipelineOutput`] or `tuple`: `audios`, float32 `[B, channels, samples]` at
            `vae.config.sampling_rate`, not normalised and not clipped; latents `[B, in_channels, sample_size]` for
            `output_type="latent"`.

        Raises:
            ValueError: naming the argument that is wrong.

        Examples:
        """
        # 1. Check the inputs.
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        if guidance_scale is None:
            guidance_scale = self.config.default_guidance_scale
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
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self.check_lora_scale(attention_kwargs)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        negatives = (negative_prompt, negative_prompt_embeds, negative_condition_embeds)
        if not self.do_classifier_free_guidance and any(value is not None for value in negatives):
            logger.warning(f"Negative prompts need guidance above 1; at {guidance_scale:g} they have no effect.")
        device = self._execution_device
        sampling_rate = self.vae.config.sampling_rate
        if audio_length_in_s is None:
            audio_length_in_s = min(10.0, self.window_samples / sampling_rate)
        num_samples = round(audio_length_in_s * sampling_rate)

        # 2. Encode the prompts into one context.
        if condition_embeds is None:
            condition_embeds = self.encode_conditions(
                prompt,
                video,
                image,
                audio,
                prompt_embeds,
                generator,
                audio_padding_side,
                num_waveforms_per_prompt,
                device,
            )
        else:
            condition_embeds = condition_embeds.repeat_interleave(num_waveforms_per_prompt, dim=0)
        num_sounds = condition_embeds.shape[0]
        if isinstance(generator, list) and len(generator) != num_sounds:
            raise ValueError(f"`generator` is a list of {len(generator)}, for {num_sounds} sounds.")
        if negative_prompt is not None or negative_prompt_embeds is not None:
            _, negative_prompt_embeds = self.encode_prompt(
                negative_prompt=negative_prompt, device=device, negative_prompt_embeds=negative_prompt_embeds
            )
            negative_condition_embeds = self.encode_conditions(prompt_embeds=negative_prompt_embeds, device=device)
        elif negative_condition_embeds is None:
            negative_condition_embeds = torch.zeros_like(condition_embeds)
        if negative_condition_embeds.shape[0] == 1:
            negative_condition_embeds = negative_condition_embeds.expand(num_sounds, -1, -1)
        elif negative_condition_embeds.shape[0] != num_sounds:
            negative_condition_embeds = negative_condition_embeds.repeat_interleave(num_waveforms_per_prompt, dim=0)
        if negative_condition_embeds.shape != condition_embeds.shape:
            raise ValueError(
                f"The negative prompts give a context of shape {list(negative_condition_embeds.shape)}, the prompts one"
                f" of {list(condition_embeds.shape)}."
            )
        dtype = self.transformer.dtype
        condition_embeds = condition_embeds.to(device, dtype)
        negative_condition_embeds = negative_condition_embeds.to(device, dtype)

        # 3. Lay out the noise levels and start from noise.
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_begin_index(0)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        latents = self.prepare_latents(num_sounds, device, generator, latents)
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = generator

        # 4. Denoise.
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                guided = self.do_classifier_free_guidance
                model_input = self.scheduler.scale_model_input(latents, t).to(dtype)
                context = condition_embeds
                if guided:
                    model_input = torch.cat((model_input, model_input))
                    context = torch.cat((negative_condition_embeds, condition_embeds))

                with self.transformer.cache_context("cond_uncond" if guided else "cond"):
                    velocity = self.transformer(
                        model_input,
                        t.expand(model_input.shape[0]),
                        context,
                        attention_kwargs=attention_kwargs,
                        return_dict=False,
                    )[0].float()

                if guided:
                    unconditional, conditional = velocity.chunk(2)
                    velocity = unconditional + self.guidance_scale * (conditional - unconditional)
                    if guidance_rescale > 0:
                        velocity = rescale_guidance(velocity, conditional, guidance_rescale)

                latents = self.scheduler.step(velocity, t, latents, **step_kwargs, return_dict=False)[0]

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    condition_embeds = callback_outputs.pop("condition_embeds", condition_embeds)
                    negative_condition_embeds = callback_outputs.pop(
                        "negative_condition_embeds", negative_condition_embeds
                    )

                progress_bar.update()

        # 5. Decode, and cut to the length asked for.
        if output_type == "latent":
            audios = latents
        else:
            audios = self.vae.decode(latents).sample[..., :num_samples].float()
            if output_type == "np":
                audios = audios.cpu().numpy()

        self.maybe_free_model_hooks()
        if not return_dict:
            return (audios,)
        return AudioPipelineOutput(audios=audios)
