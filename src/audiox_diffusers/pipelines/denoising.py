"""The loop over the noise levels: what all pipelines of AudioX share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..models import AudioXContext
from .windows import Window


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


@dataclass(frozen=True)
class Held:
    """
    What stays as it is, and for how long.

    Args:
        latents: `[B, C, L]`, clean.
        steps: `[B, L]`, the number of steps for which a frame is held at its latents.
    """

    latents: torch.Tensor
    steps: torch.Tensor


@dataclass(frozen=True)
class Sampling:
    """How to denoise: what the arguments of a call, under the same names, ask for."""

    guidance_rescale: float
    window_batch_size: int
    generator: torch.Generator | list[torch.Generator] | None
    attention_kwargs: dict[str, Any] | None
    callback_on_step_end: Callable | None
    callback_on_step_end_tensor_inputs: list[str]


class AudioXDenoisingMixin:
    """For pipelines with the components `transformer` and `scheduler`."""

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

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        windows: list[Window],
        condition_embeds: torch.Tensor,
        negative_condition_embeds: torch.Tensor,
        sampling: Sampling,
        held: Held | None = None,
    ) -> torch.Tensor:
        """
        Denoise sounds of any length (MultiDiffusion, arXiv 2302.08113): in each step the velocities that the windows
        predict are averaged, and the scheduler takes one step for the whole length.

        Args:
            latents: `[B, C, L]` at the first noise level, float32.
            timesteps: those of the scheduler, or the last ones of them, to which its begin index is set.
            windows: together they cover all that is not held. `sampling.window_batch_size` of them run at a time, for
                all sounds.
            condition_embeds: contexts `[rows, tokens, width]`, on any device.
            negative_condition_embeds: `[B, tokens, width]`.
            sampling: see [`Sampling`].
            held: what keeps its latents. It is given the velocity that leads to them, so that it goes through the
                scheduler as all else does, with noise that is right at each level.
        """
        size = windows[0].weight.shape[0]
        count = sampling.window_batch_size * latents.shape[0]
        batches = [windows[i : i + count] for i in range(0, len(windows), count)]
        weights = {id(window): window.weight.to(latents.device) for window in windows}
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = sampling.generator
        # What is kept of many windows would grow with the length, and a callback may change what it depends on.
        keeps_context = len(batches) == 1 and sampling.callback_on_step_end is None
        context = None
        # A call that was not finished leaves the caches of the transformer as they were.
        self.transformer._reset_stateful_cache()

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

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
                if held is not None:
                    holding = (held.steps > i)[:, None].to(latents.device)
                    velocity = torch.where(holding, self.scheduler.velocity(held.latents, latents, t), velocity)

                latents = self.scheduler.step(velocity, t, latents, **step_kwargs, return_dict=False)[0]

                if sampling.callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in sampling.callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = sampling.callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    condition_embeds = callback_outputs.pop("condition_embeds", condition_embeds)
                    negative_condition_embeds = callback_outputs.pop(
                        "negative_condition_embeds", negative_condition_embeds
                    )

                progress_bar.update()
        return latents

    def _context(
        self, condition_embeds: torch.Tensor, negative_condition_embeds: torch.Tensor, device: torch.device
    ) -> AudioXContext:
        """The context of some windows, with guidance after the negative one, unless that is null and vanishes."""
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
        The guided velocity of some windows, float32 `[windows, C, window]`. `number` tells batches of windows apart
        for caches of the transformer, which remember the step before.
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
