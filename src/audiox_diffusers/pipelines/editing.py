"""What is kept of a sound and what is made anew, in samples and in latent frames."""

import math
import numbers
from typing import Any

import torch

# First and last sample (exclusive) of what is made anew.
Span = tuple[int, int]


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def split_spans(spans: Any, batch_size: int) -> list[list[tuple[float, float]]]:
    """`inpaint_spans` of each item: one list of pairs for all of them, or a list of such lists."""
    if not isinstance(spans, list) or not all(isinstance(span, (tuple, list)) for span in spans):
        raise ValueError(f"`inpaint_spans` must be a list of (start, end) in seconds, got {spans!r}.")
    nested = [isinstance(span, list) and all(isinstance(item, (tuple, list)) for item in span) for span in spans]
    if not spans or not all(nested):
        return [spans] * batch_size
    if len(spans) != batch_size:
        raise ValueError(f"`inpaint_spans` has a list for {len(spans)} sounds, and there are {batch_size}.")
    return spans


def sample_spans(spans: list[tuple[float, float]], num_samples: int, sampling_rate: int) -> list[Span]:
    """
    Spans in seconds, in any order, as spans in samples that rise and do not touch; those of no length are left out.

    Raises:
        ValueError: a span is not two numbers, is reversed, or lies outside of the sound.
    """
    length, merged = num_samples / sampling_rate, []
    for span in spans:
        if len(span) != 2 or not all(is_number(time) for time in span):
            raise ValueError(f"`inpaint_spans`: a span must be (start, end), two numbers of seconds, got {span!r}.")
        if span[1] < span[0]:
            raise ValueError(f"`inpaint_spans`: a span must not end before it starts, got {span!r}.")
        # A length that was written down is rounded, here to as much as half a millisecond.
        if span[0] < 0 or span[1] > length + 5e-4:
            raise ValueError(f"`inpaint_spans`: the sound is {length:.4g} s long, got {span!r}.")
    for start, end in sorted(tuple(min(round(time * sampling_rate), num_samples) for time in span) for span in spans):
        if start == end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def mask_spans(mask: torch.Tensor) -> list[Span]:
    """Where a mask, `[N]`, is above 0."""
    edges = torch.nn.functional.pad((mask > 0).int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def stretch_mask(mask: Any, num_samples: int) -> torch.Tensor:
    """
    A mask of any number of values, spread evenly from the first sample to the last with straight lines between them,
    as one of a value for each sample; a mask that has one for each stays as it is. float32 `[num_samples]`.

    Raises:
        ValueError: it is not a row of numbers in 0..1.
    """
    try:
        values = torch.as_tensor(mask).float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`mask` must be numbers in 0..1, got {mask!r}.") from None
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`mask` must have the shape [N], got {list(values.shape)}.")
    if not torch.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ValueError(f"`mask` must lie in 0..1, got {values.min():.3g}..{values.max():.3g}.")
    if len(values) == num_samples:
        return values
    return torch.nn.functional.interpolate(values[None, None], num_samples, mode="linear", align_corners=True)[0, 0]


def frame_strengths(strengths: torch.Tensor, num_samples: int, num_frames: int, hop: int) -> torch.Tensor:
    """
    The strength of each latent frame, the highest of its samples; frames after the end of the sound, which are cut
    off, have the highest of all.

    Args:
        strengths: `[B, num_samples]`, 0 where the sound stays.

    Returns:
        `[B, num_frames]`.
    """
    padded = torch.nn.functional.pad(strengths, (0, num_frames * hop - num_samples))
    frames = padded.unflatten(1, (num_frames, hop)).amax(dim=2)
    frames[:, math.ceil(num_samples / hop) :] = frames.amax(dim=1, keepdim=True)
    return frames


def span_strengths(spans: list[Span], num_samples: int, strength: float) -> torch.Tensor:
    """`[num_samples]`: `strength` in the spans, 0 elsewhere."""
    strengths = torch.zeros(num_samples)
    for start, end in spans:
        strengths[start:end] = strength
    return strengths


def edit_regions(edited: torch.Tensor, context: int, window: int) -> list[Span]:
    """
    What has to be looked at for an edit: frames from `context` before each run of edited ones to `context` after it,
    at least a window, as far as the sound goes. What touches is one.

    Args:
        edited: bool `[L]`, with at least as many frames as a window.
    """
    regions = []
    for start, end in mask_spans(edited.float()):
        first, last = max(0, start - context), min(len(edited), end + context)
        missing = max(0, window - (last - first))
        first = min(max(0, first - missing // 2), len(edited) - max(window, last - first))
        last = max(last, first + window)
        if regions and first <= regions[-1][1]:
            regions[-1] = regions[-1][0], last
        else:
            regions.append((first, last))
    return regions


def crossfade(spans: list[Span], first: int, end: int, fade: int) -> torch.Tensor:
    """
    How much of samples `first` to `end` is new: 1 in the spans, falling evenly to 0 over `fade` samples on both sides
    of each, `[end - first]`.
    """
    gain = torch.zeros(end - first)
    for start, stop in spans:
        lower, upper = max(first, start - fade), min(end, stop + fade)
        if lower >= upper:
            continue
        samples = torch.arange(lower, upper)
        distance = torch.maximum(start - samples, samples - (stop - 1)).clamp(min=0)
        part = gain[lower - first : upper - first]
        torch.maximum(part, 1 - distance / (fade + 1), out=part)
    return gain


def mirrored(waveform: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """
    Samples `first` to `end` of a sound `[..., N]` that goes on beyond its ends as its mirror image, so that an encoder
    sees no silence there.
    """
    length = waveform.shape[-1]
    index = torch.arange(first, end) % (2 * length)
    return waveform[..., torch.minimum(index, 2 * length - 1 - index)]
