"""How a sound longer than a window lies in windows that overlap, and which prompt holds when."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch

# Seconds over which one prompt gives way to the next.
PROMPT_FADE = 1.0

TimedPrompt = list[tuple[float, float, str | None]]


@dataclass(frozen=True)
class Window:
    """
    One run of the transformer in each step.

    Args:
        sound: which sound of the batch it belongs to.
        start: its first latent frame in that sound.
        weight: `[window]`, the share of its prediction in each frame; over all windows the shares add up to 1.
        context: its row in the contexts.
    """

    sound: int
    start: int
    weight: torch.Tensor
    context: int


def window_starts(num_frames: int, window: int, overlap: int) -> list[int]:
    """
    First frames of as few evenly spread windows as cover `num_frames` and overlap by `overlap` frames or more (one
    less where rounding wants it); of one at 0 if there are no more frames than in a window.
    """
    if num_frames <= window:
        return [0]
    count = math.ceil((num_frames - overlap) / (window - overlap))
    return [round(i * (num_frames - window) / (count - 1)) for i in range(count)]


def window_weights(starts: list[int], window: int, overlap: int) -> torch.Tensor:
    """
    The share of each window in the average of MultiDiffusion (arXiv 2302.08113, equation 5), float32 `[windows,
    window]`: rising and falling evenly over `overlap` frames at its ends, divided by the sum in each frame, so that a
    frame in one window alone has exactly 1.
    """
    frames = torch.arange(window, dtype=torch.float64)
    ramp = (torch.minimum(frames + 1, window - frames) / (overlap + 1)).clamp(max=1)
    if not starts:
        return torch.zeros(0, window)
    total = torch.zeros(max(starts) + window, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += ramp
    return torch.stack([ramp / total[start : start + window] for start in starts]).float()


def prompt_shares(prompt: TimedPrompt, start: float, window: int, frame_rate: float) -> torch.Tensor:
    """
    How far each text of a timed prompt holds in the frames of a window: `[texts, window]`, a sum of 1 in each frame,
    with fades of [`PROMPT_FADE`] seconds around the times at which texts change.

    Args:
        prompt: spans in order, without gaps, in seconds.
        start: of the window, in seconds.
        window: frames of it.
        frame_rate: frames a second.
    """
    times = start + (torch.arange(window) + 0.5) / frame_rate
    begun = [((times - begin) / PROMPT_FADE + 0.5).clamp(0, 1) for begin, _, _ in prompt[1:]]
    begun = [torch.ones(window), *begun, torch.zeros(window)]
    return torch.stack([before - after for before, after in zip(begun, begun[1:], strict=False)])


def split_prompts(prompt: Any) -> list | None:
    """The items of a batch of prompts: texts, `None`s, or lists of `(start, end, text)`; such a list alone is one."""
    if prompt is None:
        return None
    if is_timed(prompt) or not isinstance(prompt, list):
        return [prompt]
    return prompt


def is_timed(prompt: Any) -> bool:
    """Whether a prompt is a list of `(start, end, text)`."""
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(span, tuple) for span in prompt)


def check_timed_prompt(prompt: TimedPrompt) -> None:
    """Raise `ValueError` unless the spans follow each other from 0 on, without gaps."""
    end = 0
    for span in prompt:
        if len(span) != 3 or not all(isinstance(time, numbers.Real) and math.isfinite(time) for time in span[:2]):
            raise ValueError(f"`prompt`: a span must be (start, end, text) with times in seconds, got {span!r}.")
        if not isinstance(span[2], str | None):
            raise ValueError(f"`prompt`: the text of a span must be a string or None, got {span!r}.")
        if span[0] != end or span[1] <= span[0]:
            raise ValueError(
                f"`prompt`: spans must follow each other from 0 on, without gaps (give None for a text where there is"
                f" none to be); got {span!r} after {end:g} s."
            )
        end = span[1]
