"""How overlapping windows cover a long sound, and which prompt applies when."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from .checks import is_number

# Seconds over which one prompt fades into the next.
PROMPT_FADE = 1.0

TimedPrompt = list[tuple[float, float, str | None]]


@dataclass(frozen=True)
class Window:
    """
    One run of the transformer in each step.

    Args:
        sound (`int`): Index of the sound in the batch.
        start (`int`): First latent frame of the window in that sound.
        weight (`torch.Tensor` of shape `[window]`): Weight of its prediction in each frame. The weights of all windows
            add up to 1.
        context (`int`): Row of its context among all contexts.
    """

    sound: int
    start: int
    weight: torch.Tensor
    context: int

    @property
    def frames(self) -> slice:
        """Latent frames of the window in its sound."""
        return slice(self.start, self.start + self.weight.shape[0])


def window_starts(num_frames: int, window: int, overlap: int) -> list[int]:
    """
    Return the first frames of the fewest evenly spread windows that cover `num_frames` and overlap by at least
    `overlap` frames (rounding may cost one). Up to `window` frames need a single window at 0.
    """
    if num_frames <= window:
        return [0]
    count = math.ceil((num_frames - overlap) / (window - overlap))
    return [round(i * (num_frames - window) / (count - 1)) for i in range(count)]


def window_weights(starts: list[int], window: int, overlap: int) -> torch.Tensor:
    """
    Return the weight of each window in the average of MultiDiffusion (arXiv 2302.08113, equation 5), float32
    `[windows, window]`. A weight rises and falls linearly over `overlap` frames at the ends of its window and is
    divided by the sum of all weights in a frame, so a frame that lies in one window alone gets exactly 1.
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
    Return the share of each text of a timed prompt in each frame of a window, `[texts, window]`. The shares of a frame
    add up to 1. Texts fade into each other over [`PROMPT_FADE`] seconds around the time at which they change.

    Args:
        prompt (`list[tuple]`): Spans in order and without gaps, in seconds.
        start (`float`): Start of the window in seconds.
        window (`int`): Number of frames.
        frame_rate (`float`): Frames per second.
    """
    times = start + (torch.arange(window) + 0.5) / frame_rate
    begun = [((times - begin) / PROMPT_FADE + 0.5).clamp(0, 1) for begin, _, _ in prompt[1:]]
    begun = [torch.ones(window), *begun, torch.zeros(window)]
    return torch.stack([before - after for before, after in zip(begun, begun[1:], strict=False)])


def split_prompts(prompt: Any) -> list | None:
    """Return a batch of prompts as a list. A single text or a single timed prompt becomes a list of one."""
    if prompt is None:
        return None
    if is_timed(prompt) or not isinstance(prompt, list):
        return [prompt]
    return prompt


def is_timed(prompt: Any) -> bool:
    """Whether a prompt is a list of `(start, end, text)`."""
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(span, tuple) for span in prompt)


def check_timed_prompt(prompt: TimedPrompt) -> None:
    """Raise `ValueError` unless the spans start at 0 and follow each other without gaps."""
    end = 0
    for span in prompt:
        if len(span) != 3 or not all(is_number(time) for time in span[:2]):
            raise ValueError(f"`prompt`: a span must be (start, end, text) with times in seconds, got {span!r}.")
        if not isinstance(span[2], str | None):
            raise ValueError(f"`prompt`: the text of a span must be a string or None, got {span!r}.")
        if span[0] != end or span[1] <= span[0]:
            raise ValueError(
                "`prompt`: the spans must start at 0 and follow each other without gaps (use None as the text of a"
                f" gap), got {span!r} after {end:g} s."
            )
        end = span[1]
