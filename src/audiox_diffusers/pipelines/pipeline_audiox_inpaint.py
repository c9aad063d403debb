"""Edit sounds: regenerate parts, extend, vary."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AudioPipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..media import load_audio
from .checks import MAX_REFINEMENTS, check_choice, check_count, is_number
from .denoising import Conditions, KnownLatents, Sampling
from .editing import (
    Span,
    crossfade,
    edit_regions,
    extend_after,
    extend_before,
    frame_strengths,
    mask_spans,
    mirrored,
    sample_spans,
    span_strengths,
    split_spans,
    stretch_mask,
)
from .inputs import is_path, read_waveform, split_batch, to_waveform
from .pipeline_audiox import AudioXPipeline
from .prompts import Prompts
from .vae_tiles import decode_tiles, encode_tiles
from .windows import TimedPrompt, window_starts

logger = logging.get_logger(__name__)

# Refinements noise the new latents back to this time.
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


@dataclass(frozen=True)
class Edit:
    """What to edit. The fields have the names of the arguments of [`AudioXInpaintPipeline.__call__`]."""

    inpaint_spans: Any
    mask: Any
    extend_by_s: float | None
    strength: float | None
    crossfade_ms: float
    num_refinements: int


@dataclass(frozen=True)
class Canvas:
    """
    A batch of sounds on the grid of latent frames.

    Args:
        waveform (`torch.Tensor` of shape `[B, channels, frames * hop]`): The input on the CPU, silent where there is
            none.
        spans (`list[list[Span]]`): What to regenerate in each sound, in samples of the grid.
        fade (`int`): Samples of the crossfade.
        first, end (`int`): Samples of the grid between which the result lies.
    """

    waveform: torch.Tensor
    spans: list[list[Span]]
    fade: int
    first: int
    end: int


class AudioXInpaintPipeline(AudioXPipeline):
    r"""
    Pipeline that edits sounds with AudioX (arXiv 2503.10522): it regenerates spans, extends sounds and varies them. It
    has the components of [`AudioXPipeline`] and can share them: `AudioXInpaintPipeline.from_pipe(pipe)` keeps the
    default steps and guidance too, `AudioXInpaintPipeline(**pipe.components)` does not.
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
        guidance_scale: float | dict[str, float] | None = None,
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
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        negative_video: Any = None,
        negative_audio: Any = None,
    ) -> AudioPipelineOutput | tuple:
        r"""
        Edit a sound in one of four ways. Prompts, lists and long sounds work as in [`AudioXPipeline`].

        - `inpaint_spans` regenerates spans. The audio prompt of the model is the sound with the spans silenced, and all
          other latents are held at those of the sound, with the noise of each step.
        - `mask` is a soft version: each value is the `strength` at its time.
        - `extend_by_s` continues the sound or, if negative, generates what comes before it, window by window. Each
          window overlaps with the sound so far, which is also its audio prompt.
        - `strength` alone varies the whole sound: it starts from the sound with noise, without an audio prompt.

        Where new latents meet known ones, `num_refinements` passes fit them to each other: they noise the new latents
        halfway and denoise them again (RePaint, arXiv 2201.09865). Outside the edit and its crossfade the result is
        the input, sample for sample.

        Args:
            audio: The sound, as a path or `(waveform, rate)`, or a list of sounds of equal length. A waveform must have
                the model's rate and channels. A file is converted if it has others, with a warning.
            prompt, negative_prompt, video, image, prompt_embeds, negative_prompt_embeds (*optional*): See
                [`AudioXPipeline`]. Their times are those of the result.
            inpaint_spans (`list[tuple[float, float]]`, *optional*): `(start, end)` in seconds, in any order, or a list
                of such lists, one for each sound.
            mask (`torch.Tensor` or `np.ndarray` of shape `[N]`, *optional*): Strengths in 0..1, spread evenly over the
                sound; 0 keeps it.
            extend_by_s (`float`, *optional*): Seconds to add after the sound, or before it if negative.
            strength (`float`, *optional*): Time of the noise level to start from, above 0 (clean) and at most 1
                (noise), rounded to the nearest of the schedule. The steps before it are skipped. With `inpaint_spans`
                it applies to the spans, where it defaults to 1.
            crossfade_ms (`float`): Milliseconds on both sides of an edit over which it fades into the input, at most
                the overlap of windows.
            num_refinements (`int`): Number of passes that fit new latents to known ones, 0 or more (the resampling of
                RePaint). A pass takes the steps below time 0.5, a sixth of the default schedule.
            num_inference_steps, guidance_scale, guidance_rescale, num_waveforms_per_prompt, generator,
                window_overlap_in_s, window_batch_size, attention_kwargs: See [`AudioXPipeline`]. The windows of an
                extension overlap by half a window by default.
            output_type (`str`): `"np"`, `"pt"`, `"latent"`, or `"stream"` for an iterator.
            return_dict (`bool`): Whether to return an [`~pipelines.AudioPipelineOutput`] instead of a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: See [`AudioXPipeline`]. Steps start again from 0
                in each refinement and in each window of an extension.
            guidance_interval, guider, negative_video, negative_audio: See [`AudioXPipeline`]. The momentum of a guider
                starts again in each pass. Its steps are those of the whole schedule, also if a pass skips the first.

        Returns:
            [`~pipelines.AudioPipelineOutput`] or `tuple`: `audios`, float32 `[B, channels, samples]` at
            `vae.config.sampling_rate`, as long as the sound and its extension; for `"stream"` an iterator of numpy
            arrays `[B, channels, n]`; for `"latent"` latents `[B, in_channels, L]` of the whole result and at least a
            window: those of the input with the edit in them. Decoded, they are the result without the exact input and
            the crossfade. Those of an extension begin up to a frame before the result, so that a frame begins or ends
            where the input does.

        Raises:
            ValueError: An argument is wrong; the message names it.

        Examples:
        """
        # 1. Check the inputs.
        self.check_components()
        edit = Edit(inpaint_spans, mask, extend_by_s, strength, crossfade_ms, num_refinements)
        if extend_by_s is not None and window_overlap_in_s is None:
            overlap = self.transformer.config.sample_size // 2
        else:
            overlap = self.overlap_frames(window_overlap_in_s)
        self.check_edit(edit, overlap)
        prompts = Prompts.collect(
            prompt=prompt,
            negative_prompt=negative_prompt,
            video=video,
            image=image,
            audio=self._read_sounds(audio),
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            negative_video=negative_video,
            negative_audio=negative_audio,
        )
        sampling = self.prepare_sampling(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            window_overlap=overlap,
            window_batch_size=window_batch_size,
            generator=generator,
            attention_kwargs=attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            guidance_interval=guidance_interval,
            guider=guider,
        )
        rate = self.vae.config.sampling_rate
        num_new = round((extend_by_s or 0) * rate)
        num_samples = prompts.audio[0].shape[1] + abs(num_new)
        self.check_prompts(prompts, sampling, num_samples / rate, "extend_by_s" if num_new else "audio")
        self.check_features(prompts.video, num_samples)
        check_choice("output_type", output_type, ("np", "pt", "latent", "stream"))

        # 2. Denoise, and mix the new sound into the input.
        with self.begin_call(sampling) as pipe:
            if sampling.weights:
                prompts = pipe.embed_negatives(prompts, generator, self._execution_device)
            if num_new:
                latents, pieces = pipe._extend(edit, num_new, prompts, sampling, output_type == "latent")
            else:
                latents, pieces = pipe._inpaint(edit, prompts, sampling, output_type == "latent")

        # 3. Join the pieces.
        if output_type == "latent":
            audios = latents.to(self._execution_device)
            self.maybe_free_model_hooks()
        elif output_type == "stream":
            audios = self._stream(pieces)
        else:
            audios = np.concatenate(list(self._stream(pieces)), axis=-1)
        if output_type == "pt":
            audios = torch.from_numpy(audios).to(self._execution_device)
        if not return_dict:
            return (audios,)
        return AudioPipelineOutput(audios=audios)

    def check_edit(self, edit: Edit, overlap: int) -> None:
        """Check an edit without its sound; raise `ValueError` if an argument is wrong."""
        ways = {"inpaint_spans": edit.inpaint_spans, "mask": edit.mask, "extend_by_s": edit.extend_by_s}
        given = [name for name, value in ways.items() if value is not None]
        strength, extend_by_s = edit.strength, edit.extend_by_s
        if not given and strength is None:
            raise ValueError("Give one of `inpaint_spans`, `mask`, `extend_by_s` and `strength`.")
        if len(given) > 1 or (strength is not None and given and given != ["inpaint_spans"]):
            names = given if strength is None else [*given, "strength"]
            raise ValueError(
                "Give one of `inpaint_spans` (with or without `strength`), `mask`, `extend_by_s` and `strength`; got"
                f" {', '.join(f'`{name}`' for name in names)}."
            )
        rate = self.vae.config.sampling_rate
        if strength is not None and not (is_number(strength) and 0 < strength <= 1):
            raise ValueError(f"`strength` must be above 0 and at most 1, got {strength}.")
        if extend_by_s is not None and not (is_number(extend_by_s) and round(abs(extend_by_s) * rate)):
            raise ValueError(
                f"`extend_by_s` must be a number of seconds, at least one sample ({1 / rate:.2g} s) either way, got"
                f" {extend_by_s!r}."
            )
        longest = 1000 * overlap * self.vae.hop_length / rate
        if not (is_number(edit.crossfade_ms) and 0 <= edit.crossfade_ms <= longest):
            raise ValueError(
                f"`crossfade_ms` must be in 0..{longest:.4g} ms, the overlap of windows, got {edit.crossfade_ms}."
            )
        check_count("num_refinements", edit.num_refinements, lowest=0, highest=MAX_REFINEMENTS)

    def _read_sounds(self, audio: Any) -> list[torch.Tensor]:
        """Read a batch of sounds of equal length, `[channels, N]` each."""
        items = split_batch("audio", audio)
        if items is None or any(item is None for item in items):
            raise ValueError("`audio` is the sound to edit, as a path or `(waveform, rate)`; got None.")
        rate, channels = self.vae.config.sampling_rate, self.vae.config.audio_channels
        waveforms = [_read_exactly(item, rate, channels) for item in items]
        lengths = [waveform.shape[1] for waveform in waveforms]
        if len(set(lengths)) > 1:
            raise ValueError(f"`audio`: the sounds of a batch must be equally long, got {lengths} samples.")
        return waveforms

    def _fade(self, edit: Edit) -> int:
        return round(edit.crossfade_ms / 1000 * self.vae.config.sampling_rate)

    def _inpaint(
        self, edit: Edit, prompts: Prompts, sampling: Sampling, whole: bool
    ) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
        """
        Regenerate spans, a soft mask or the whole sound, in one run over all windows that the edit depends on. Return
        the latents and an iterator over the result. With `whole` the latents are valid beyond those windows.
        """
        waveform = torch.stack(prompts.audio)
        num_samples, hop, fade = waveform.shape[-1], self.vae.hop_length, self._fade(edit)
        spans, strengths = self._edited(edit, prompts)
        size = self.transformer.config.sample_size
        num_frames = max(size, math.ceil(num_samples / hop))
        waveform = torch.nn.functional.pad(waveform, (0, num_frames * hop - num_samples))
        strengths = frame_strengths(strengths, num_samples, num_frames, hop)
        canvas = Canvas(waveform, spans, fade, 0, num_samples)

        # Decoded samples depend on latents as far away as the decoder's receptive field.
        context = max(sampling.window_overlap, self.vae.tile_latent_overlap + math.ceil(fade / hop) + 1)
        known = torch.zeros(len(waveform), self.transformer.config.in_channels, num_frames)
        if whole:
            known = encode_tiles(self.vae, waveform, 0, num_frames, self._execution_device)
        if not any(spans):
            logger.warning("`inpaint_spans` or `mask` select nothing, so the sound is returned unchanged.")
            return known, iter([waveform[..., :num_samples]])
        starts = []
        for sound, edited in enumerate(strengths > 0):
            regions = edit_regions(edited, context, size)
            starts.append(
                [
                    first + start
                    for first, end in regions
                    for start in window_starts(end - first, size, sampling.window_overlap)
                ]
            )
            for first, end in () if whole else regions:
                part = encode_tiles(self.vae, waveform[sound : sound + 1], first, end, self._execution_device)
                known[sound, :, first:end] = part[0]
        silenced = waveform.clone()
        for sound, item in zip(silenced, spans, strict=True):
            for start, end in item:
                sound[:, start:end] = 0
        conditions = self._encode_edit(replace(prompts, audio=list(silenced)), starts, sampling)
        latents = self._regenerate(known, strengths, conditions, sampling, edit.num_refinements)
        return latents, self._mix(canvas, latents, (0, math.ceil(num_samples / hop)))

    def _edited(self, edit: Edit, prompts: Prompts) -> tuple[list[list[Span]], torch.Tensor]:
        """Return the spans that change in each sound, and the strength of each sample, `[B, num_samples]`."""
        num_sounds, num_samples, rate = len(prompts), prompts.audio[0].shape[-1], self.vae.config.sampling_rate
        if edit.mask is not None:
            strengths = stretch_mask(edit.mask, num_samples)
            return [mask_spans(strengths)] * num_sounds, strengths.expand(num_sounds, -1)
        repeats = prompts.num_waveforms_per_prompt
        seconds = [(0.0, num_samples / rate)] if edit.inpaint_spans is None else edit.inpaint_spans
        spans = [sample_spans(item, num_samples, rate) for item in split_spans(seconds, num_sounds // repeats)]
        spans = [item for item in spans for _ in range(repeats)]
        return spans, torch.stack([span_strengths(item, num_samples, edit.strength or 1.0) for item in spans])

    def _extend(
        self, edit: Edit, num_new: int, prompts: Prompts, sampling: Sampling, whole: bool
    ) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
        """
        Generate what comes after a sound, or before it if `num_new` is negative, window by window. Return the latents
        and an iterator over the result. With `whole` the latents are valid for all of the input.
        """
        sound = torch.stack(prompts.audio)
        hop, size, halo = self.vae.hop_length, self.transformer.config.sample_size, self.vae.tile_latent_overlap
        lay_out = extend_after if num_new > 0 else extend_before
        grid = lay_out(sound.shape[-1], abs(num_new), hop, size, sampling.window_overlap)
        begin, input_end = grid.input
        known = grid.known_frames(hop)

        waveform = torch.zeros(*sound.shape[:2], grid.num_frames * hop)
        waveform[..., begin:input_end] = sound
        canvas = Canvas(waveform, [[grid.new]] * len(sound), self._fade(edit), 0, grid.num_frames * hop)
        result = waveform.clone()
        prompts = replace(prompts, audio=list(result))

        # Encode what the first window and the decoder see of the input.
        near = slice(0 if whole else max(0, grid.starts[0] - halo), None if whole else grid.starts[0] + size + halo)
        lower, upper = _bounds(known[near], near.start)
        mirror = mirrored(sound, (lower - halo) * hop - begin, (upper + halo) * hop - begin)
        latents = torch.zeros(len(sound), self.transformer.config.in_channels, grid.num_frames)
        latents[..., lower:upper] = encode_tiles(self.vae, mirror, halo, halo + upper - lower, self._execution_device)

        negative_condition_embeds = None
        for start in grid.starts:
            if self.interrupt:
                break
            frames = slice(start, start + size)
            conditions = self._encode_edit(
                prompts, [[start]] * len(sound), sampling, grid.result[0], negative_condition_embeds
            )
            negative_condition_embeds = conditions.negative_condition_embeds
            conditions = replace(conditions, windows=[replace(window, start=0) for window in conditions.windows])
            strengths = (~known[frames]).float().expand(len(sound), -1)
            new = self._regenerate(latents[..., frames], strengths, conditions, sampling, edit.num_refinements).cpu()
            latents[..., frames] = torch.where(known[frames], latents[..., frames], new)

            # Decode the new frames, and those before them again, which now have new neighbours.
            margin = halo + math.ceil(canvas.fade / hop) + 1
            lower, upper = _bounds(~known[frames], start)
            known[frames] = True
            lowest, highest = _bounds(known)
            lower, upper = max(lowest, lower - margin), min(highest, upper + margin)
            place = lower * hop
            for piece in self._mix(canvas, latents[..., :highest], (lower, upper), lowest):
                result[..., place : place + piece.shape[-1]] = piece
                place += piece.shape[-1]
        first, end = grid.result
        return latents, iter(result[..., first:end].split(hop * self.vae.tile_latent_min_length, dim=-1))

    def _encode_edit(
        self,
        prompts: Prompts,
        starts: list[list[int]],
        sampling: Sampling,
        offset: int = 0,
        negative_condition_embeds: torch.Tensor | None = None,
    ) -> Conditions:
        """Encode the prompts of the windows at these frames. The negative contexts are the same for all windows."""
        windows, contexts = self.encode_windows(prompts, starts, sampling, self._execution_device, offset)
        if negative_condition_embeds is None:
            negative_condition_embeds = self.encode_negative(prompts, contexts[:, 0], sampling.generator)
        return Conditions.split(windows, contexts.to(self.transformer.dtype), negative_condition_embeds, sampling)

    def _regenerate(
        self,
        known: torch.Tensor,
        strengths: torch.Tensor,
        conditions: Conditions,
        sampling: Sampling,
        num_refinements: int,
    ) -> torch.Tensor:
        """
        Regenerate latents and fit them to the known ones.

        Args:
            known (`torch.Tensor` of shape `[B, C, L]`): Clean latents of the sound.
            strengths (`torch.Tensor` of shape `[B, L]`): Strength of each frame. 0 keeps the known latents, 1 ignores
                them.

        Returns:
            `torch.Tensor`: `[B, C, L]`.
        """
        latents = self._noise_and_denoise(known.to(self._execution_device), strengths, conditions, sampling)
        refined = strengths.clamp(max=REFINEMENT_TIME) * (strengths == 0).any(dim=1, keepdim=True)
        for _ in range(num_refinements if refined.any() else 0):
            if not self.interrupt:
                latents = self._noise_and_denoise(latents, refined, conditions, sampling)
        self.check_finite(latents)
        return latents

    def _noise_and_denoise(
        self, known: torch.Tensor, strengths: torch.Tensor, conditions: Conditions, sampling: Sampling
    ) -> torch.Tensor:
        """Noise latents to the level of the highest strength and denoise them; hold each frame until its own level."""
        device = known.device
        # A callback may have changed it in the pass before.
        self._guidance_scale = sampling.guidance_scale
        # The times are needed on the CPU first, and copying them back would wait for the device.
        self.scheduler.set_timesteps(sampling.num_inference_steps, device="cpu")
        values, index = strengths.unique(return_inverse=True)
        times = self.scheduler.timesteps
        self.scheduler.timesteps = times.to(device)
        steps = (times - values[:, None]).abs().argmin(dim=1)
        steps[values == 0] = len(times)
        begin = steps.min().item()
        self.scheduler.set_begin_index(begin)
        timesteps = self.scheduler.timesteps[begin:]
        self._num_timesteps = len(timesteps)

        noise = randn_tensor(known.shape, generator=sampling.generator, device=device, dtype=torch.float32)
        seen = torch.where((strengths < 1)[:, None].to(device), known, 0)
        latents = self.scheduler.add_noise(seen, noise, timesteps[:1].expand(len(known)))
        return self.denoise(latents, timesteps, conditions, sampling, KnownLatents(known, steps[index] - begin))

    def _mix(self, canvas: Canvas, latents: torch.Tensor, frames: Span, lowest: int = 0) -> Iterator[torch.Tensor]:
        """
        Yield some frames of the result in pieces: the input, with the decoded latents faded in.

        Args:
            latents (`torch.Tensor` of shape `[B, C, L]`): Latents, valid from frame `lowest` on.
            frames (`Span`): First and last frame (exclusive).
        """
        hop, (first, last) = self.vae.hop_length, frames
        length = self.vae.tile_latent_min_length - 2 * self.vae.tile_latent_overlap
        for start in range(first, last, length):
            stop = min(start + length, last)
            samples = slice(max(start * hop, canvas.first), min(stop * hop, canvas.end))
            kept = canvas.waveform[..., samples]
            gain = torch.stack([crossfade(spans, samples.start, samples.stop, canvas.fade) for spans in canvas.spans])
            if not gain.any():
                yield kept
                continue
            (decoded,) = decode_tiles(self.vae, latents.to(self._execution_device), start, stop, lowest)
            decoded = decoded[..., samples.start - start * hop : samples.stop - start * hop].cpu()
            gain = gain[:, None]
            yield torch.where(gain > 0, gain * decoded + (1 - gain) * kept, kept)


def _bounds(frames: torch.Tensor, offset: int = 0) -> Span:
    """Return the first and the last (exclusive) true frame of a mask `[L]`, plus an offset."""
    frames = frames.nonzero().flatten() + offset
    return frames[0].item(), frames[-1].item() + 1


def _read_exactly(item: Any, rate: int, channels: int) -> torch.Tensor:
    """Read a sound. A file with another rate or other channels is converted with a warning, a waveform is refused."""
    if is_path(item):
        waveform, actual = load_audio(item, duration=0.1)
        if (actual, len(waveform)) != (rate, channels):
            logger.warning(
                f"{item}: {actual} Hz and {len(waveform)} channels, converted to the model's {rate} Hz and {channels};"
                " the edit keeps the converted sound."
            )
    else:
        waveform, actual = to_waveform(item, channels)
        if actual != rate:
            raise ValueError(
                f"`audio`: the waveform is at {actual} Hz, and the model at {rate} Hz. An edit keeps samples as they"
                " are, so convert it first with `audiox_diffusers.media.resample_audio`."
            )
        if len(waveform) != channels:
            raise ValueError(
                f"`audio`: the waveform must have the model's {channels} channels, [{channels}, N], got"
                f" {list(waveform.shape)}. An edit keeps samples as they are, so repeat or mix channels first."
            )
    return read_waveform(item, rate, channels)
