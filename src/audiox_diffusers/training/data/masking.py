"""Multi-modal masked training (arXiv 2503.10522): the task of a sample, and which of its inputs are hidden."""

from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..arguments import TASKS, MaskingConfig

# Modalities that a task requires, and those it uses if the sample has them.
_NEEDS = {
    "text": {"caption"},
    "video": {"video"},
    "text_video": {"caption", "video"},
    "image": {"image"},
    "inpainting": set(),
    "completion": {"previous"},
}
_USES = {
    "text": {"caption"},
    "video": {"video"},
    "text_video": {"caption", "video"},
    "image": {"caption", "image"},
    "inpainting": {"caption", "video"},
    "completion": {"caption", "video"},
}
_AUDIO = {"inpainting": "target", "completion": "previous"}


@dataclass(frozen=True)
class TaskSpec:
    """
    The task of a sample and the inputs it uses.

    Attributes:
        task: One of `TASKS`.
        text: Whether the caption is used.
        caption: Choice among `n` captions: number `int(caption * n)`. At least 0 and below 1.
        video, image: Whether the video or the image is used.
        audio: Audio prompt: `"target"` is the target sound with a silenced span, `"previous"` the sound before it,
            `None` for no audio prompt.
        audio_span: Start and end of the silenced span of a `"target"`, as shares of its length.
        drop_context: Whether the whole context is zeroed.
    """

    task: str
    text: bool
    caption: float
    video: bool
    image: bool
    audio: str | None
    audio_span: tuple[float, float] | None
    drop_context: bool


def draw_task_spec(
    config: MaskingConfig, available: frozenset[str], generator: torch.Generator, task: str | None = None
) -> TaskSpec:
    """
    Draw the task of a sample and the inputs it uses.

    Args:
        config: Weights of the tasks, and rates.
        available: Modalities of the sample: `"caption"`, `"video"`, `"image"` and `"previous"` (sound before the
            window).
        generator: Generator on the CPU. Nine numbers are drawn, whatever the outcome.
        task: Task to use instead of a drawn one. Its weight is ignored.

    Raises:
        ValueError: `task` is unknown or needs a modality that is not available, or all possible tasks have weight 0.
    """
    draws = iter(torch.rand(9, generator=generator, dtype=torch.float64).tolist())
    task = _task(config, available, next(draws), task)
    used = _USES[task] & available
    caption = next(draws)
    text = next(draws) >= config.drop_text_rate and "caption" in used
    video = next(draws) >= config.drop_video_rate and "video" in used
    image = next(draws) >= config.drop_video_rate and "image" in used
    audio = _AUDIO.get(task) if next(draws) >= config.drop_audio_rate else None
    share = config.audio_mask_min + (config.audio_mask_max - config.audio_mask_min) * next(draws)
    start = (1 - share) * next(draws)
    return TaskSpec(
        task=task,
        text=text,
        caption=caption,
        video=video,
        image=image,
        audio=audio,
        audio_span=(start, min(start + share, 1.0)) if audio == "target" else None,
        drop_context=next(draws) < config.drop_context_rate,
    )


def _task(config: MaskingConfig, available: frozenset[str], draw: float, task: str | None) -> str:
    """Return `task`, or the task that `draw`, in 0..1, selects."""
    has = f"the sample has {', '.join(sorted(available)) or 'only sound'}"
    if task is not None:
        if task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
        if not _NEEDS[task] <= available:
            raise ValueError(f"`task` {task!r} needs {' and '.join(sorted(_NEEDS[task]))}, {has}.")
        return task
    weights = {task: config.task_weights.get(task, 0.0) for task in TASKS if _NEEDS[task] <= available}
    possible = [task for task in weights if weights[task] > 0]
    if not possible:
        raise ValueError(f"`task_weights` are 0 for all possible tasks ({', '.join(weights)}): {has}.")
    bounds = list(accumulate(weights[task] for task in possible))
    return possible[bisect(bounds, draw * bounds[-1], hi=len(bounds) - 1)]


def draw_masks(
    config: MaskingConfig, generator: torch.Generator, num_text_tokens: int, num_frames: int, num_frame_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw independently for each text token and each patch of each frame whether it is kept.

    Args:
        config: Rates of the masks.
        generator: Generator on the CPU.
        num_text_tokens, num_frames, num_frame_tokens: Sizes of the masks.

    Returns:
        Masks `[num_text_tokens]` and `[num_frames, num_frame_tokens]`, float32, 1 for kept and 0 for masked.
    """
    text = torch.rand(num_text_tokens, generator=generator) >= config.mask_text_rate
    video = torch.rand(num_frames, num_frame_tokens, generator=generator) >= config.mask_video_rate
    return text.float(), video.float()


def mask_audio_latents(latents: torch.Tensor, silence: torch.Tensor, span: tuple[float, float]) -> torch.Tensor:
    """
    Silence a span of an audio prompt, as latents or as a waveform.

    Args:
        latents, silence: `[C, L]`.
        span: Start and end as shares of the length.

    Returns:
        `latents` with positions `round(start * L)` to `round(end * L)`, the last excluded, replaced by `silence`.
    """
    length = latents.shape[1]
    start, end = (round(share * length) for share in span)
    hidden = torch.zeros(length, dtype=torch.bool, device=latents.device)
    hidden[start:end] = True
    return torch.where(hidden, silence, latents)
