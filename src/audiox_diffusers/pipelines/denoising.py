"""The denoising loop that all AudioX pipelines share."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch

from ..models import AudioXContext
from .calls import separate
from .checks import MAX_GUIDANCE, MAX_STEPS, check_count, is_number
from .windows import Window


def rescale_guidance(guided: torch.Tensor, conditional: torch.Tensor, guidance_rescale: float) -> torch.Tensor:
    """
    Bring the guided prediction back to the standard deviation of the conditional one (arXiv 2305.08891, section 3.4,
    but over the channels of each frame instead of the whole sample).

    Args:
        guided, conditional (`torch.Tensor` of shape `[B, C, L]`): The two predictions.
        guidance_rescale (`float`): Share of the rescaled prediction in the result, from 0 (none) to 1.
    """
    rescaled = guided * (conditional.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True))
    return guided + guidance_rescale * (rescaled - guided)


@dataclass(frozen=True)
class Conditions:
    """
    What the windows of a batch of sounds are conditioned on.

    Args:
        windows (`list[Window]`): The windows of all sounds.
        condition_embeds (`torch.Tensor` of shape `[rows, tokens, width]`): Their contexts, on any device.
        negative_condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`): The negative context of each sound.
    """

    windows: list[Window]
    condition_embeds: torch.Tensor
    negative_condition_embeds: torch.Tensor


@dataclass(frozen=True)
class KnownLatents:
    """
    Latents that the result must agree with.

    Args:
        latents (`torch.Tensor` of shape `[B, C, L]`): The clean latents.
        steps (`torch.Tensor` of shape `[B, L]`): Number of steps for which each frame is held at them.
    """

    latents: torch.Tensor
    steps: torch.Tensor


@dataclass(frozen=True)
class Sampling:
    """
    How to sample. The fields have the names of the arguments of [`AudioXPipeline.__call__`], except for
    `window_overlap`, which counts latent frames.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    window_overlap: int
    window_batch_size: int
    generator: torch.Generator | list[torch.Generator] | None
    attention_kwargs: dict[str, Any] | None
    callback_on_step_end: Callable | None
    callback_on_step_end_tensor_inputs: list[str]


class AudioXDenoisingMixin:
    """Denoising, for pipelines with the components `transformer` and `scheduler`."""

    _current_timestep = None
    _callback_tensor_inputs = ["latents", "condition_embeds", "negative_condition_embeds"]

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
    def current_timestep(self) -> torch.Tensor | None:
        """Time of the current step, `None` outside of the loop."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise `ValueError` for an argument that is out of range."""
        check_count("window_batch_size", sampling.window_batch_size)
        check_count("num_inference_steps", sampling.num_inference_steps, highest=MAX_STEPS)
        scale, rescale = sampling.guidance_scale, sampling.guidance_rescale
        if not is_number(scale) or abs(scale) > MAX_GUIDANCE:
            raise ValueError(f"`guidance_scale` must be a number, at most {MAX_GUIDANCE:g}, got {scale!r}.")
        if not is_number(rescale) or not 0 <= rescale <= 1:
            raise ValueError(f"`guidance_rescale` must be in 0..1, got {rescale!r}.")
        kwargs = sampling.attention_kwargs
        if not isinstance(kwargs, dict | None) or not is_number((kwargs or {}).get("scale", 1.0)):
            raise ValueError(f"`attention_kwargs` must be a dict such as {{'scale': 0.5}}, got {kwargs!r}.")
        callback, names = sampling.callback_on_step_end, sampling.callback_on_step_end_tensor_inputs
        if callback is not None and not callable(callback):
            raise ValueError(f"`callback_on_step_end` must be a function, got {callback!r}.")
        if not isinstance(names, list | tuple) or not set(names) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be a list of names among {self._callback_tensor_inputs},"
                f" got {names!r}."
            )

    @contextmanager
    def begin_call(self, sampling: Sampling) -> Iterator[Self]:
        """
        Yield the pipeline that a call runs on, with the state that callbacks read and change. It is a copy if this one
        is in use, see [`separate`].
        """
        with separate(self, sampling.attention_kwargs) as pipe:
            pipe._guidance_scale = sampling.guidance_scale
            pipe._interrupt = False
            try:
                yield pipe
            finally:
                pipe._current_timestep = None

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
        sampling: Sampling,
        known: KnownLatents | None = None,
    ) -> torch.Tensor:
        """
        Denoise sounds of any length (MultiDiffusion, arXiv 2302.08113). Each step averages the velocities that the
        windows predict and takes one scheduler step for the whole length.

        Args:
            latents (`torch.Tensor` of shape `[B, C, L]`): Latents at the first noise level, float32.
            timesteps (`torch.Tensor`): The scheduler's timesteps from its begin index on.
            conditions (`Conditions`): Windows that cover all frames but the known ones, and their contexts.
            sampling (`Sampling`): How to sample.
            known (`KnownLatents`, *optional*): Frames to hold. They get the velocity that leads to the known latents,
                so that they pass through the scheduler like all others, with the noise of each level.

        Returns:
            `torch.Tensor`: Denoised latents, `[B, C, L]`.
        """
        windows, condition_embeds = conditions.windows, conditions.condition_embeds
        negative_condition_embeds = conditions.negative_condition_embeds
        size = windows[0].weight.shape[0]
        count = sampling.window_batch_size * latents.shape[0]
        batches = [windows[i : i + count] for i in range(0, len(windows), count)]
        weights = {id(window): window.weight.to(latents.device) for window in windows}
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = sampling.generator
        # A kept context would grow with the number of windows, and a callback may change it.
        keeps_context = len(batches) == 1 and sampling.callback_on_step_end is None
        context = None
        # A call that did not finish may have left its activations in the transformer's caches.
        self.transformer._reset_stateful_cache()

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                self._current_timestep = t
                model_input = self.scheduler.scale_model_input(latents, t)
                velocity = torch.zeros_like(latents)
                for number, batch in enumerate(batches):
                    if context is None or not keeps_context:
                        context = self._context(
                            condition_embeds[[w.context for w in batch]],
                            negative_condition_embeds[[w.sound for w in batch]],
                            latents.device,
                        )
                    predicted = self._predict(
                        torch.stack([model_input[w.sound, :, w.start : w.start + size] for w in batch]),
                        t,
                        context,
                        number,
                        sampling,
                    )
                    for window, values in zip(batch, predicted, strict=True):
                        frames = slice(window.start, window.start + size)
                        velocity[window.sound, :, frames] += weights[id(window)] * values
                if known is not None:
                    holding = (known.steps > i)[:, None].to(latents.device)
                    velocity = torch.where(holding, self.scheduler.velocity(known.latents, latents, t), velocity)

                latents = self.scheduler.step(velocity, t, latents, **step_kwargs, return_dict=False)[0]

                if sampling.callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in sampling.callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = self._call_back(sampling, i, t, callback_kwargs, latents.shape)
                    latents = callback_outputs.get("latents", latents)
                    condition_embeds = callback_outputs.get("condition_embeds", condition_embeds)
                    negative_condition_embeds = callback_outputs.get(
                        "negative_condition_embeds", negative_condition_embeds
                    )

                progress_bar.update()
        if not torch.isfinite(latents).all():
            raise ValueError(
                f"Denoising gave NaN or infinite latents. Lower `guidance_scale`, which is {self.guidance_scale:g}, or"
                f" run the transformer in bfloat16 or float32; it is in {self.transformer.dtype}."
            )
        return latents

    def _call_back(
        self, sampling: Sampling, i: int, t: torch.Tensor, tensors: dict[str, torch.Tensor], shape: torch.Size
    ) -> dict[str, torch.Tensor]:
        """Call the callback after a step and return the tensors that it replaces."""
        outputs = sampling.callback_on_step_end(self, i, t, tensors)
        if outputs is None:
            return {}
        if not isinstance(outputs, dict):
            raise ValueError(
                f"`callback_on_step_end` must return a dict of tensors or None, got {type(outputs).__name__}."
            )
        if "latents" in outputs and getattr(outputs["latents"], "shape", None) != shape:
            raise ValueError(f"`callback_on_step_end` must return `latents` in the shape {list(shape)}.")
        return outputs

    def _context(
        self, condition_embeds: torch.Tensor, negative_condition_embeds: torch.Tensor, device: torch.device
    ) -> AudioXContext:
        """Return the context of some windows. Guidance puts the negative one first, unless it is null and vanishes."""
        if self.do_classifier_free_guidance:
            vanishes = self.transformer.null_context_vanishes and not negative_condition_embeds.any()
            if not vanishes:
                negative_condition_embeds = negative_condition_embeds.to(condition_embeds)
                condition_embeds = torch.cat((negative_condition_embeds, condition_embeds))
        return AudioXContext(condition_embeds.to(device, self.transformer.dtype))

    def _predict(
        self,
        model_input: torch.Tensor,
        t: torch.Tensor,
        context: AudioXContext,
        number: int,
        sampling: Sampling,
    ) -> torch.Tensor:
        """
        Return the guided velocity of a batch of windows, float32 `[windows, C, window]`. The transformer's caches
        remember the last step of each batch by its `number`.
        """
        guided = self.do_classifier_free_guidance
        model_input = model_input.to(self.transformer.dtype)
        if guided:
            model_input = torch.cat((model_input, model_input))

        name = "cond_uncond" if guided else "cond"
        with self.transformer.cache_context(name if number == 0 else f"{name}_{number}"):
            velocity = self.transformer(
                model_input,
                t.expand(model_input.shape[0]),
                context,
                attention_kwargs=sampling.attention_kwargs,
                return_dict=False,
            )[0].float()

        if guided:
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + self.guidance_scale * (conditional - unconditional)
            if sampling.guidance_rescale > 0:
                velocity = rescale_guidance(velocity, conditional, sampling.guidance_rescale)
        return velocity
