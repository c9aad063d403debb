"""The denoising loop that all AudioX pipelines share."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from diffusers.guiders.guider_utils import BaseGuidance

from ..models import AudioXContext
from .calls import separate
from .checks import MAX_STEPS, check_count, is_number
from .guidance import GuiderRun, check_guider, check_interval, check_scale, guide_by_modality
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


def _version(tensor: torch.Tensor) -> Any:
    """Return a value that differs after a change in place. Tensors of inference mode count as changed."""
    return object() if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Conditions:
    """
    What the windows of a batch of sounds are conditioned on.

    Args:
        windows (`list[Window]`): The windows of all sounds.
        condition_embeds (`torch.Tensor` of shape `[rows, tokens, width]`): Their contexts, on any device.
        negative_condition_embeds (`torch.Tensor` of shape `[B, tokens, width]`): The negative context of each sound.
        without (`dict[str, torch.Tensor]`): Contexts `[rows, tokens, width]` without a modality, by its name.
        negative_is_null (`bool`): Whether all negative contexts are zeros.
    """

    windows: list[Window]
    condition_embeds: torch.Tensor
    negative_condition_embeds: torch.Tensor
    without: dict[str, torch.Tensor] = field(default_factory=dict)
    negative_is_null: bool = False

    @classmethod
    def split(
        cls,
        windows: list[Window],
        contexts: torch.Tensor,
        negative_condition_embeds: torch.Tensor,
        sampling: "Sampling",
    ) -> Self:
        """Build conditions from contexts `[rows, 1 + weights, tokens, width]`, the first with all modalities."""
        condition_embeds, *without = contexts.unbind(dim=1)
        without = dict(zip(sampling.weights, without, strict=True))
        is_null = not negative_condition_embeds.any()
        return cls(windows, condition_embeds, negative_condition_embeds, without, is_null)


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
    guidance_scale: float | Mapping[str, float]
    guidance_rescale: float
    window_overlap: int
    window_batch_size: int
    generator: torch.Generator | list[torch.Generator] | None
    attention_kwargs: dict[str, Any] | None
    callback_on_step_end: Callable | None
    callback_on_step_end_tensor_inputs: list[str]
    guidance_interval: tuple[float, float] | None = None
    guider: BaseGuidance | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Guidance weights other than 1 by modality; empty if one scale guides all of them."""
        if not isinstance(self.guidance_scale, Mapping):
            return {}
        return {name: weight for name, weight in self.guidance_scale.items() if weight != 1}


class KeptContexts:
    """
    Projected contexts of the batches of windows in a run of the denoising loop. The first one is always kept, others
    as long as all of them take at most `max_bytes`.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._contexts: dict[tuple[int, bool], AudioXContext] = {}

    def get(self, key: tuple[int, bool]) -> AudioXContext | None:
        return self._contexts.get(key)

    def keep(self, key: tuple[int, bool], context: AudioXContext) -> None:
        kept = sum(other.num_bytes for other in self._contexts.values())
        if not self._contexts or kept + context.num_bytes <= self._max_bytes:
            self._contexts[key] = context

    def clear(self) -> None:
        self._contexts.clear()


@dataclass
class DenoisingRun:
    """
    State of one run of the denoising loop.

    Args:
        conditions (`Conditions`): Current conditions. A callback may replace them.
        sampling (`Sampling`): How to sample.
        batches (`list[list[Window]]`): Windows that the transformer takes at once.
        contexts (`KeptContexts`): Projected contexts of the batches.
        guided_steps (`list[bool]`): Whether the time of each step is in the guidance interval.
        guider_run (`GuiderRun` or `None`): Guider that replaces the guidance scale.
        cache_context (`Callable`): Context manager that names a batch for the transformer's caches.
        device, dtype (`torch.device` and `torch.dtype`): Those of the transformer's input.
    """

    conditions: Conditions
    sampling: Sampling
    batches: list[list[Window]]
    contexts: KeptContexts
    guided_steps: list[bool]
    guider_run: GuiderRun | None
    cache_context: Callable
    device: torch.device
    dtype: torch.dtype


def _cut(latents: torch.Tensor, windows: list[Window]) -> torch.Tensor:
    """Return the frames of each window, `[windows, C, window]`, from latents `[B, C, L]`."""
    return torch.stack([latents[window.sound, :, window.frames] for window in windows])


class AudioXDenoisingMixin:
    """
    Denoising, for pipelines with the components `transformer` and `scheduler`.

    Attributes:
        max_context_bytes (`int`): Memory for the projected contexts of long sounds, in bytes. Contexts beyond it are
            projected again in every step, which takes more time.
    """

    max_context_bytes = 1 << 30
    _replays_graphs = False
    _current_timestep = None
    _callback_tensor_inputs = ["latents", "condition_embeds", "negative_condition_embeds"]

    @property
    def guidance_scale(self) -> float | Mapping[str, float]:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        if isinstance(self._guidance_scale, Mapping):
            return any(weight != 1 for weight in self._guidance_scale.values())
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

    def compile(self, **kwargs: Any) -> None:
        """
        Compile the blocks of the transformer (regional compilation). The first calls are slower, because they compile:
        one for the first shapes, and one for all other shapes. On CUDA devices, CUDA graphs replay the blocks.

        Args:
            kwargs: Arguments of [`torch.compile`]. Defaults to `fullgraph=True`, and to `mode="reduce-overhead"` on
                CUDA devices.

        Example:

        ```py
        pipe = AudioXPipeline.from_pretrained("audiox").to("cuda")
        pipe.compile()
        ```
        """
        if self.transformer.device.type == "cuda" and not {"mode", "options", "backend"} & set(kwargs):
            kwargs["mode"] = "reduce-overhead"
        self.transformer.compile_repeated_blocks(**{"fullgraph": True, **kwargs})
        self._replays_graphs = kwargs.get("mode") in ("reduce-overhead", "max-autotune")

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise `ValueError` for an argument that is out of range."""
        check_count("window_batch_size", sampling.window_batch_size)
        check_count("num_inference_steps", sampling.num_inference_steps, highest=MAX_STEPS)
        check_scale(sampling.guidance_scale)
        check_interval(sampling.guidance_interval)
        check_guider(sampling.guider)
        if sampling.guider is not None and sampling.guidance_interval is not None:
            raise ValueError("`guidance_interval` does not go with `guider`; set `start` and `stop` of the guider.")
        if sampling.guider is not None and sampling.guidance_rescale:
            raise ValueError("`guidance_rescale` does not go with `guider`; set `guidance_rescale` of the guider.")
        rescale = sampling.guidance_rescale
        if not is_number(rescale) or not 0 <= rescale <= 1:
            raise ValueError(f"`guidance_rescale` must be in 0..1, got {rescale!r}.")
        kwargs = sampling.attention_kwargs
        if (
            not isinstance(kwargs, dict | None)
            or set(kwargs or ()) - {"scale"}
            or not is_number((kwargs or {"scale": 1}).get("scale", 1))
        ):
            raise ValueError(
                f"`attention_kwargs` must be a dict with no key but 'scale', such as {{'scale': 0.5}}, got {kwargs!r}."
            )
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
        run = self._start_run(latents, timesteps, conditions, sampling)
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = sampling.generator

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                self._current_timestep = t
                velocity = self._average_velocity(run, latents, i, t)
                if known is not None:
                    holding = (known.steps > i)[:, None].to(latents.device)
                    velocity = torch.where(holding, self.scheduler.velocity(known.latents, latents, t), velocity)
                latents = self.scheduler.step(velocity, t, latents, **step_kwargs, return_dict=False)[0]
                if sampling.callback_on_step_end is not None:
                    latents = self._end_step(run, latents, i, t)
                progress_bar.update()
        return latents

    def _start_run(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions, sampling: Sampling
    ) -> DenoisingRun:
        windows = [replace(window, weight=window.weight.to(latents.device)) for window in conditions.windows]
        count = sampling.window_batch_size * latents.shape[0]
        guided_steps = [True] * len(timesteps)
        if sampling.guidance_interval is not None:
            low, high = sampling.guidance_interval
            guided_steps = [low <= time <= high for time in timesteps.cpu().tolist()]
        guider_run = None
        if sampling.guider is not None:
            num_steps = len(self.scheduler.timesteps)
            guider_run = GuiderRun(sampling.guider, self.scheduler, num_steps, num_steps - len(timesteps))
        # Hooks and parameters are looked for once, because it takes as long as some layers of a small model.
        cache_context = nullcontext
        if any(hasattr(module, "_diffusers_hook") for module in self.transformer.modules()):
            cache_context = self.transformer.cache_context
            # A call that did not finish may have left its activations in the transformer's caches.
            self.transformer._reset_stateful_cache()
        return DenoisingRun(
            conditions=conditions,
            sampling=sampling,
            batches=[windows[i : i + count] for i in range(0, len(windows), count)],
            contexts=KeptContexts(self.max_context_bytes),
            guided_steps=guided_steps,
            guider_run=guider_run,
            cache_context=cache_context,
            device=latents.device,
            dtype=self.transformer.dtype,
        )

    def _average_velocity(self, run: DenoisingRun, latents: torch.Tensor, i: int, t: torch.Tensor) -> torch.Tensor:
        """Return the weighted average of the velocities of all windows at step `i`, float32 `[B, C, L]`."""
        model_input = self.scheduler.scale_model_input(latents, t)
        velocity = torch.zeros_like(latents)
        for number, batch in enumerate(run.batches):
            guider = None if run.guider_run is None else run.guider_run.at(number, i, t)
            if guider is None:
                guided = run.guided_steps[i] and self.do_classifier_free_guidance
            else:
                guided = guider.num_conditions > 1
            context = self._context(run, number, guided)
            inputs = _cut(model_input, batch).to(run.dtype)
            # The transformer's caches remember the last step of each batch of windows by its name.
            name = "cond_uncond" if guided else "cond"
            with run.cache_context(name if number == 0 else f"{name}_{number}"):
                velocities = self._predict(inputs, t, context, guided, run.sampling)
            if guider is not None:
                predicted = run.guider_run.combine(guider, velocities, _cut(latents, batch), t)
            else:
                predicted = self._guide(velocities, run.sampling) if guided else velocities[0]
            for window, values in zip(batch, predicted, strict=True):
                velocity[window.sound, :, window.frames] += window.weight * values
        return velocity

    def _context(self, run: DenoisingRun, number: int, guided: bool) -> AudioXContext:
        """Return the projected context of a batch of windows, kept from an earlier step if possible."""
        context = run.contexts.get((number, guided))
        if context is None:
            embeds = self._context_embeds(replace(run.conditions, windows=run.batches[number]), guided)
            embeds = embeds.to(run.device, run.dtype)
            context = self.transformer.project_context(embeds, attention_kwargs=run.sampling.attention_kwargs)
            run.contexts.keep((number, guided), context)
        return context

    def _end_step(self, run: DenoisingRun, latents: torch.Tensor, i: int, t: torch.Tensor) -> torch.Tensor:
        """Call the callback after step `i`. Return its latents, and update the run if it changed the contexts."""
        conditions = run.conditions
        embeds = {
            "condition_embeds": conditions.condition_embeds,
            "negative_condition_embeds": conditions.negative_condition_embeds,
        }
        versions = [_version(tensor) for tensor in embeds.values()]
        tensors = {"latents": latents, **embeds}
        given = {name: tensors[name] for name in run.sampling.callback_on_step_end_tensor_inputs}
        outputs = self._call_back(run.sampling, i, t, given, latents.shape)
        changed = {name: outputs.get(name, tensor) for name, tensor in embeds.items()}
        replaced = any(changed[name] is not tensor for name, tensor in embeds.items())
        if replaced or [_version(tensor) for tensor in embeds.values()] != versions:
            run.contexts.clear()
            is_null = not changed["negative_condition_embeds"].any()
            run.conditions = replace(conditions, **changed, negative_is_null=is_null)
        return outputs.get("latents", latents)

    def check_finite(self, latents: torch.Tensor) -> None:
        """Raise `ValueError` if denoised latents hold NaN or infinite values."""
        if not torch.isfinite(latents).all():
            raise ValueError(
                f"Denoising gave NaN or infinite latents. Lower `guidance_scale`, which is {self.guidance_scale}, or"
                f" run the transformer in bfloat16 or float32; it is in {self.transformer.dtype}."
            )

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

    def _context_embeds(self, conditions: Conditions, guided: bool) -> torch.Tensor:
        """
        Return the contexts of some windows. Guidance puts those that it leads away from first, but leaves out the
        negative one if it is null and vanishes.
        """
        rows = [window.context for window in conditions.windows]
        # Not by a list of rows, for which the device would wait.
        condition_embeds = torch.stack([conditions.condition_embeds[row] for row in rows])
        away = []
        if guided and isinstance(self._guidance_scale, Mapping):
            away = [torch.stack([conditions.without[name][row] for row in rows]) for name in self._weights]
        elif guided:
            negative = conditions.negative_condition_embeds
            if not self.transformer.null_context_vanishes or not conditions.negative_is_null:
                away = [torch.stack([negative[window.sound] for window in conditions.windows])]
        return torch.cat([*(embeds.to(condition_embeds) for embeds in away), condition_embeds])

    @property
    def _weights(self) -> dict[str, float]:
        """Guidance weights other than 1 by modality."""
        return {name: weight for name, weight in self._guidance_scale.items() if weight != 1}

    def _predict(
        self,
        model_input: torch.Tensor,
        t: torch.Tensor,
        context: AudioXContext,
        guided: bool,
        sampling: Sampling,
    ) -> tuple[torch.Tensor, ...]:
        """
        Return the velocities of a batch of windows, float32 `[windows, C, window]`: the conditional one, and those that
        guidance leads away from.
        """
        copies = 1
        if guided:
            copies += len(self._weights) if isinstance(self._guidance_scale, Mapping) else 1
            model_input = torch.cat([model_input] * copies)

        if self._replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        velocity = self.transformer(
            model_input,
            t.expand(model_input.shape[0]),
            context,
            attention_kwargs=sampling.attention_kwargs,
            return_dict=False,
        )[0].float()
        *away, conditional = velocity.chunk(copies)
        return conditional, *away

    def _guide(self, velocities: tuple[torch.Tensor, ...], sampling: Sampling) -> torch.Tensor:
        """Return the guided velocity of a batch of windows."""
        conditional, *away = velocities
        if isinstance(self._guidance_scale, Mapping):
            velocity = guide_by_modality(conditional, away, list(self._weights.values()))
        else:
            velocity = away[0] + self._guidance_scale * (conditional - away[0])
        if sampling.guidance_rescale > 0:
            velocity = rescale_guidance(velocity, conditional, sampling.guidance_rescale)
        return velocity
