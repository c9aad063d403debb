"""Editing of sounds: parts made anew, sounds that go on, variations."""

import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AudioPipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..media import load_audio
from .denoising import Held, Sampling
from .editing import (
    Span,
    crossfade,
    edit_regions,
    frame_strengths,
    is_number,
    mask_spans,
    mirrored,
    sample_spans,
    span_strengths,
    split_spans,
    stretch_mask,
)
from .inputs import is_path, read_waveform, split_batch
from .pipeline_audiox import AudioXPipeline
from .vae_tiles import decode_tiles, encode_tiles
from .windows import TimedPrompt, Window, split_prompts, window_starts

logger = logging.get_logger(__name__)

# To this time new latents are noised again, and denoised, where they meet held ones.
REFINEMENT_TIME = 0.5

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from audiox_diffusers import AudioXInpaintPipeline
        >>> from audiox_diffusers.media import save_audio

        >>> edit = AudioXInpaintPipeline.from_pretrained("audiox").to("cuda")
        >>> audio = edit(audio="street.wav", prompt="a car passes", inpaint_spans=[(2.5, 7.5)]).audios[0]
        >>> save_audio("street-with-car.wav", audio, edit.vae.config.sampling_rate)
        ```
"""


@dataclass
class Edit:
    """
    A batch of sounds that are being edited, on a grid of latent frames.

    Args:
        waveform: `[B, channels, frames * hop]` on the CPU, silent where there is no input.
        spans: what is made anew, for each sound, in samples of the grid.
        fade: samples of the crossfade.
        first, end: samples of the grid between which the result lies.
    """

    waveform: torch.Tensor
    spans: list[list[Span]]
    fade: int
    first: int
    end: int


@dataclass(frozen=True)
class Task:
    """What the stages of one call share."""

    items: dict[str, list]
    overlap: int
    num_inference_steps: int
    num_refinements: int
    negative: tuple
    num_waveforms_per_prompt: int
    sampling: Sampling


class AudioXInpaintPipeline(AudioXPipeline):
    r"""
    Editing of sounds with AudioX (arXiv 2503.10522): spans made anew, sounds that go on, variations. It has the
    components of [`AudioXPipeline`] and can share them: `AudioXInpaintPipeline.from_pipe(pipe)`, which keeps the
    default steps and guidance too, or `AudioXInpaintPipeline(**pipe.components)`.
    """

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        audio: Any,
        prompt: str | list[str | TimedPrompt | None] | TimedPrompt | None = None,
        negative_prompt: str | list[str] | None = None,
        video: Any = None,
        image: Any = None,
        inpaint_spans: list[tuple[float, float]] | list[list[tuple[float, float]]] | None = None,
        mask: torch.Tensor | np.ndarray | None = None,
        extend_by_s: float | None = None,
        strength: float | None = None,
        crossfade_ms: float = 20.0,
        num_refinements: int = 4,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        window_overlap_in_s: float | None = None,
        window_batch_size: int = 4,
        attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[["AudioXInpaintPipeline", int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
    ) -> AudioPipelineOutput | tuple:
        r"""
        Edit a sound in one of four ways; prompts, lists and sounds longer than a window are as in [`AudioXPipeline`].

        - `inpaint_spans` are made anew. The model is given the sound with the spans silenced as its audio prompt, and
          all other latents are held at those of the sound, with noise, at every step.
        - `mask` does so softly: a value is the `strength` at its time.
        - `extend_by_s` goes on after the sound or, if negative, before it, in windows that each begin in what is there
          and are given it as their audio prompt.
        - `strength` alone makes a variation of the whole sound, which it starts from, without an audio prompt.

        Where what is new meets what is held, it is noised halfway and denoised again `num_refinements` times (after
        RePaint, arXiv 2201.09865), for the model has seen the latter under noise alone. Outside of what is made anew
        and of the crossfade around it, the result is the input, sample for sample.

        Args:
            audio: the sound, as a path or `(waveform, rate)`, or a list of equally long ones. A waveform must be at
                the model's rate and with its channels; a file that is not is converted, with a warning, and what is
                kept is the converted sound.
            prompt, negative_prompt, video, image, prompt_embeds, negative_prompt_embeds (*optional*): what to hear, as
                in [`AudioXPipeline`]. Times are those of the result, with which a video begins.
            inpaint_spans (`list[tuple[float, float]]`, *optional*): `(start, end)` in seconds, in any order, or a list
                of such lists, one for each sound.
            mask (`torch.Tensor` or `np.ndarray` of shape `[N]`, *optional*): strengths in 0..1, spread evenly over the
                sound, 0 for what stays.
            extend_by_s (`float`, *optional*): seconds to add after the sound, or before it where negative.
            strength (`float`, *optional*): above 0 and at most 1: the time of the noise level to start from, in the
                model's times from 0 (clean) to 1 (noise), rounded to one of the schedule. Steps before it are left
                out. With `inpaint_spans` it is that of the spans, by default 1.
            crossfade_ms (`float`): milliseconds on both sides of what is new, outside of it, over which it gives way
                to the input; at most the overlap of windows.
            num_refinements (`int`): how often what is new is fitted again to what is held, 0 or more. Each takes the
                steps below time 0.5, a sixth of the default schedule.
            num_inference_steps, guidance_scale, guidance_rescale, num_waveforms_per_prompt, generator,
                window_overlap_in_s, window_batch_size, attention_kwargs: as in [`AudioXPipeline`]. Windows of an
                extension overlap by `window_overlap_in_s` too, or by half a window by default.
            output_type (`str`): `"np"`, `"pt"`, or `"stream"` for an iterator.
            return_dict (`bool`): whether to return an [`~pipelines.AudioPipelineOutput`] instead of a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in [`AudioXPipeline`]; steps are counted anew
                when latents are noised again, and for each window of an extension.

        Returns:
            [`~pipelines.AudioPipelineOutput`] or `tuple`: `audios`, float32 `[B, channels, samples]` at
            `vae.config.sampling_rate`, as long as the sound, and as the extension. For `"stream"` an iterator of numpy
            arrays `[B, channels, n]`.

        Raises:
            ValueError: naming the argument that is wrong.

        Examples:
        """
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        if guidance_scale is None:
            guidance_scale = self.config.default_guidance_scale
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        rate = self.vae.config.sampling_rate
        if extend_by_s is not None and window_overlap_in_s is None:
            overlap = self.transformer.config.sample_size // 2
        else:
            overlap = self.overlap_frames(window_overlap_in_s)
        self.check_edit(inpaint_spans, mask, extend_by_s, strength, crossfade_ms, num_refinements, overlap)
        waveforms = self._read_sounds(audio)
        num_samples = waveforms[0].shape[1] + abs(round((extend_by_s or 0) * rate))
        self.check_inputs(
            prompt,
            negative_prompt,
            video,
            image,
            audio,
            prompt_embeds,
            negative_prompt_embeds,
            None,
            None,
            num_samples / rate,
            num_inference_steps,
            guidance_scale,
            guidance_rescale,
            num_waveforms_per_prompt,
            window_batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
            output_types=("np", "pt", "stream"),
        )
        self.check_lora_scale(attention_kwargs)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        items = self.broadcast_prompts(
            split_prompts(prompt), video, image, waveforms, prompt_embeds, generator, num_waveforms_per_prompt
        )
        self.check_features(items["video"], num_samples)
        sampling = Sampling(
            guidance_rescale,
            window_batch_size,
            generator,
            attention_kwargs,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        negative = (negative_prompt, negative_prompt_embeds, None)
        task = Task(items, overlap, num_inference_steps, num_refinements, negative, num_waveforms_per_prompt, sampling)
        fade = round(crossfade_ms / 1000 * rate)

        if extend_by_s is not None:
            pieces = self._extend(task, round(extend_by_s * rate), fade)
        else:
            pieces = self._inpaint(task, inpaint_spans, mask, strength, fade)
        audios = self._stream(pieces)
        if output_type != "stream":
            audios = np.concatenate(list(audios), axis=-1)
        if output_type == "pt":
            audios = torch.from_numpy(audios).to(self._execution_device)
        if not return_dict:
            return (audios,)
        return AudioPipelineOutput(audios=audios)

    def check_edit(
        self,
        inpaint_spans: list | None,
        mask: torch.Tensor | np.ndarray | None,
        extend_by_s: float | None,
        strength: float | None,
        crossfade_ms: float,
        num_refinements: int,
        overlap: int,
    ) -> None:
        """Raise `ValueError` for the arguments that this pipeline alone has, as far as the sound is not needed."""
        ways = {"inpaint_spans": inpaint_spans, "mask": mask, "extend_by_s": extend_by_s}
        given = [name for name, value in ways.items() if value is not None]
        if not given and strength is None:
            raise ValueError("Give one of `inpaint_spans`, `mask`, `extend_by_s` and `strength`.")
        if len(given) > 1 or (strength is not None and given and given != ["inpaint_spans"]):
            names = given if strength is None else [*given, "strength"]
            raise ValueError(
                f"Give one of `inpaint_spans`, with or without `strength`, `mask`, `extend_by_s` and `strength`; got"
                f" {', '.join(f'`{name}`' for name in names)}."
            )
        rate = self.vae.config.sampling_rate
        if strength is not None and not (is_number(strength) and 0 < strength <= 1):
            raise ValueError(f"`strength` must be above 0 and at most 1, got {strength}.")
        if extend_by_s is not None and not (is_number(extend_by_s) and round(abs(extend_by_s) * rate)):
            raise ValueError(f"`extend_by_s` must be a number of seconds other than 0, got {extend_by_s}.")
        longest = 1000 * overlap * self.vae.hop_length / rate
        if not (is_number(crossfade_ms) and 0 <= crossfade_ms <= longest):
            raise ValueError(
                f"`crossfade_ms` must be in 0..{longest:.4g} ms, the overlap of windows, got {crossfade_ms}."
            )
        if not isinstance(num_refinements, numbers.Integral) or num_refinements < 0:
            raise ValueError(f"`num_refinements` must be a whole number, 0 or more, got {num_refinements}.")

    def _read_sounds(self, audio: Any) -> list[torch.Tensor]:
        """The sounds of a batch, equally long, `[channels, N]` each."""
        items = split_batch("audio", audio)
        if items is None or any(item is None for item in items):
            raise ValueError("`audio` is the sound to edit, as a path or `(waveform, rate)`; got None.")
        rate, channels = self.vae.config.sampling_rate, self.vae.config.audio_channels
        for item in items:
            self._check_form(item, rate, channels)
        waveforms = [read_waveform(item, rate, channels) for item in items]
        lengths = [waveform.shape[1] for waveform in waveforms]
        if len(set(lengths)) > 1:
            raise ValueError(f"`audio`: the sounds of a batch must be equally long, got {lengths} samples.")
        return waveforms

    @staticmethod
    def _check_form(item: Any, rate: int, channels: int) -> None:
        """`ValueError` for a waveform, and a warning for a file, that could not be kept sample for sample."""
        if is_path(item):
            waveform, actual = load_audio(item, duration=0.1)
            if (actual, len(waveform)) != (rate, channels):
                logger.warning(
                    f"{item}: {actual} Hz and {len(waveform)} channels, converted to the model's {rate} Hz and"
                    f" {channels}; what is kept of it is the converted sound."
                )
            return
        if not isinstance(item, tuple) or len(item) != 2:
            return  # read_waveform says what is wrong
        shape = tuple(np.shape(item[0]))
        if item[1] != rate:
            raise ValueError(
                f"`audio`: the waveform is at {item[1]} Hz, and the model at {rate} Hz, so that it could not be kept"
                f" sample for sample; convert it with `audiox_diffusers.media.resample_audio`."
            )
        if len(shape) in (1, 2) and (shape[0] if len(shape) == 2 else 1) != channels:
            raise ValueError(
                f"`audio`: the waveform must have the model's {channels} channels, [{channels}, N], to be kept sample"
                f" for sample, got {list(shape)}; repeat a channel, or mix them, first."
            )

    def _inpaint(
        self, task: Task, inpaint_spans: Any, mask: Any, strength: float | None, fade: int
    ) -> Iterator[torch.Tensor]:
        """Spans, a soft mask, or a whole sound: one run over all windows in which something is made anew."""
        waveform = torch.stack(task.items["audio"])
        num_samples, rate, hop = waveform.shape[-1], self.vae.config.sampling_rate, self.vae.hop_length
        if mask is not None:
            strengths = stretch_mask(mask, num_samples).expand(len(waveform), -1)
            spans = [mask_spans(strengths[0])] * len(waveform)
        else:
            batch = len(waveform) // task.num_waveforms_per_prompt
            seconds = split_spans([(0.0, num_samples / rate)] if inpaint_spans is None else inpaint_spans, batch)
            spans = [sample_spans(item, num_samples, rate) for item in seconds]
            spans = [item for item in spans for _ in range(task.num_waveforms_per_prompt)]
            strengths = torch.stack([span_strengths(item, num_samples, strength or 1.0) for item in spans])
        if not any(spans):
            logger.warning("`inpaint_spans` or `mask` leave everything as it is: the sound is returned unchanged.")
            return iter([waveform])

        size = self.transformer.config.sample_size
        num_frames = max(size, math.ceil(num_samples / hop))
        waveform = torch.nn.functional.pad(waveform, (0, num_frames * hop - num_samples))
        strengths = frame_strengths(strengths, num_samples, num_frames, hop)
        edit = Edit(waveform, spans, fade, 0, num_samples)

        # What is heard of the sound depends on latents as far away as the decoder looks.
        context = max(task.overlap, self.vae.tile_latent_overlap + math.ceil(fade / hop) + 1)
        known = torch.zeros(len(waveform), self.transformer.config.in_channels, num_frames)
        starts = []
        for sound, edited in enumerate(strengths > 0):
            regions = edit_regions(edited, context, size)
            starts.append(
                [first + s for first, end in regions for s in window_starts(end - first, size, task.overlap)]
            )
            for first, end in regions:
                part = encode_tiles(self.vae, waveform[sound : sound + 1], first, end, self._execution_device)
                known[sound, :, first:end] = part[0]
        silenced = waveform.clone()
        for sound, item in zip(silenced, spans, strict=True):
            for start, end in item:
                sound[:, start:end] = 0
        task = replace(task, items={**task.items, "audio": list(silenced)})
        windows, *contexts = self._encode_edit(task, starts, edit)
        latents = self._run(task, windows, contexts, known, strengths)
        return self._mixed(edit, latents, 0, math.ceil(num_samples / hop))

    def _extend(self, task: Task, num_new: int, fade: int) -> Iterator[torch.Tensor]:
        """
        What comes after a sound, or before it, window by window. The grid of latent frames is laid so that the sound
        ends, or begins, with one.
        """
        sound = torch.stack(task.items["audio"])
        hop, size, halo = self.vae.hop_length, self.transformer.config.sample_size, self.vae.tile_latent_overlap
        length = sound.shape[-1]
        begin = -length % hop if num_new > 0 else math.ceil(-num_new / hop) * hop
        input_end = begin + length
        first, end = (begin, input_end + num_new) if num_new > 0 else (begin + num_new, input_end)
        num_frames = max(size, math.ceil(end / hop))
        known = torch.zeros(num_frames, dtype=torch.bool)
        known[begin // hop : math.ceil(input_end / hop)] = True

        edit = Edit(torch.zeros(*sound.shape[:2], num_frames * hop), [], fade, first, end)
        edit.waveform[..., begin:input_end] = sound
        edit.spans = [[(input_end, num_frames * hop)] if num_new > 0 else [(0, begin)]] * len(sound)
        canvas = edit.waveform.clone()
        task = replace(task, items={**task.items, "audio": list(canvas)})
        latents = torch.zeros(len(sound), self.transformer.config.in_channels, num_frames)

        # One end of what is still to be made; it moves away from the sound.
        edge = input_end // hop if num_new > 0 else begin // hop
        encoded, negative_condition_embeds = False, None
        while (edge * hop < end if num_new > 0 else edge > 0) and not self.interrupt:
            start = edge - task.overlap if num_new > 0 else edge + task.overlap - size
            start = min(max(0, start), num_frames - size)
            if not encoded:
                inside = known[max(0, start - halo) : start + size + halo].nonzero().flatten() + max(0, start - halo)
                lower, upper = inside[0].item(), inside[-1].item() + 1
                near = mirrored(sound, (lower - halo) * hop - begin, (upper + halo) * hop - begin)
                latents[..., lower:upper] = encode_tiles(
                    self.vae, near, halo, halo + upper - lower, self._execution_device
                )
                encoded = True

            frames = slice(start, start + size)
            windows, *contexts = self._encode_edit(task, [[start]] * len(sound), edit, negative_condition_embeds)
            negative_condition_embeds = contexts[1]
            windows = [replace(window, start=0) for window in windows]
            strengths = (~known[frames]).float().expand(len(sound), -1)
            made = self._run(task, windows, contexts, latents[..., frames], strengths).cpu()
            latents[..., frames] = torch.where(known[frames], latents[..., frames], made)
            # Frames at the edge of the window before are decoded again, now with what follows them.
            margin = halo + math.ceil(fade / hop) + 1
            new = (~known[frames]).nonzero().flatten() + start
            known[frames] = True
            lowest, highest = known.nonzero()[0].item(), known.nonzero()[-1].item() + 1
            lower, upper = max(lowest, new[0].item() - margin), min(highest, new[-1].item() + 1 + margin)
            place, whole = lower * hop, replace(edit, first=0, end=num_frames * hop)
            for piece in self._mixed(whole, latents[..., :highest], lower, upper, lowest):
                canvas[..., place : place + piece.shape[-1]] = piece
                place += piece.shape[-1]
            edge = start + size if num_new > 0 else start
        return iter(canvas[..., first:end].split(hop * self.vae.tile_latent_min_length, dim=-1))

    def _encode_edit(
        self, task: Task, starts: list[list[int]], edit: Edit, negative_condition_embeds: torch.Tensor | None = None
    ) -> tuple[list[Window], torch.Tensor, torch.Tensor]:
        """The windows at these frames, their contexts, and the negative ones, which are the same for all windows."""
        device = self._execution_device
        windows, condition_embeds = self.encode_windows(
            task.items, starts, task.overlap, edit.first, task.sampling.generator, device
        )
        if negative_condition_embeds is None:
            negative_condition_embeds = self.encode_negative(
                *task.negative, len(edit.waveform), task.num_waveforms_per_prompt, condition_embeds, device
            )
        return windows, condition_embeds.to(self.transformer.dtype), negative_condition_embeds

    def _run(
        self,
        task: Task,
        windows: list[Window],
        contexts: list[torch.Tensor],
        known: torch.Tensor,
        strengths: torch.Tensor,
    ) -> torch.Tensor:
        """
        Make latents anew, `[B, C, L]`, and where others are held make them agree.

        Args:
            contexts: those of the windows, and the negative ones of the sounds.
            known: `[B, C, L]`, clean latents of the sound.
            strengths: `[B, L]`, 0 for what is held to the end. Where it is 1 the known latents are not seen.
        """
        guidance_scale = self.guidance_scale
        latents = self._pass(task, windows, contexts, known.to(self._execution_device), strengths)
        refined = strengths.clamp(max=REFINEMENT_TIME) * (strengths == 0).any(dim=1, keepdim=True)
        for _ in range(task.num_refinements if refined.any() else 0):
            if not self.interrupt:
                self._guidance_scale = guidance_scale
                latents = self._pass(task, windows, contexts, latents, refined)
        self._guidance_scale = guidance_scale
        return latents

    def _pass(
        self,
        task: Task,
        windows: list[Window],
        contexts: list[torch.Tensor],
        known: torch.Tensor,
        strengths: torch.Tensor,
    ) -> torch.Tensor:
        """
        Noise known latents to the level of the highest strength, and denoise. A frame is held until the level of its
        own strength.
        """
        device = known.device
        self.scheduler.set_timesteps(task.num_inference_steps, device=device)
        values, index = strengths.unique(return_inverse=True)
        times = self.scheduler.timesteps.cpu()
        steps = (times - values[:, None]).abs().argmin(dim=1)
        steps[values == 0] = len(times)
        begin = steps.min().item()
        self.scheduler.set_begin_index(begin)
        timesteps = self.scheduler.timesteps[begin:]
        self._num_timesteps = len(timesteps)

        noise = randn_tensor(known.shape, generator=task.sampling.generator, device=device, dtype=torch.float32)
        seen = torch.where((strengths < 1)[:, None].to(device), known, 0)
        latents = self.scheduler.add_noise(seen, noise, timesteps[:1].expand(len(known)))
        held = Held(known, steps[index] - begin)
        return self.denoise(latents, timesteps, windows, *contexts, task.sampling, held)

    def _mixed(
        self, edit: Edit, latents: torch.Tensor, first: int, end: int, lowest: int = 0
    ) -> Iterator[torch.Tensor]:
        """
        Frames `first` to `end` of the result, in pieces: the input, and what was made anew, decoded, faded in. There
        are latents from frame `lowest` on.
        """
        hop = self.vae.hop_length
        length = self.vae.tile_latent_min_length - 2 * self.vae.tile_latent_overlap
        for start in range(first, end, length):
            stop = min(start + length, end)
            samples = slice(max(start * hop, edit.first), min(stop * hop, edit.end))
            kept = edit.waveform[..., samples]
            gain = torch.stack([crossfade(spans, samples.start, samples.stop, edit.fade) for spans in edit.spans])
            if not gain.any():
                yield kept
                continue
            (decoded,) = decode_tiles(self.vae, latents.to(self._execution_device), start, stop, lowest)
            decoded = decoded[..., samples.start - start * hop : samples.stop - start * hop].cpu()
            gain = gain[:, None]
            yield torch.where(gain > 0, gain * decoded + (1 - gain) * kept, kept)
