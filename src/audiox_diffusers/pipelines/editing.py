"""What an edit keeps and what it regenerates, in samples and in latent frames."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from .checks import is_number

# First and last sample (exclusive) of a part to regenerate.
Span = tuple[int, int]


def split_spans(spans: Any, batch_size: int) -> list[list[tuple[float, float]]]:
    """Return the spans of each sound, from one list of pairs for all sounds or a list of such lists."""
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
    Convert spans from seconds to samples: sorted, merged where they touch, without empty ones.

    Raises:
        ValueError: A span is not two numbers, is reversed, or lies outside the sound.
    """
    length, merged = num_samples / sampling_rate, []
    for span in spans:
        if len(span) != 2 or not all(is_number(time) for time in span):
            raise ValueError(f"`inpaint_spans`: a span must be (start, end), two numbers of seconds, got {span!r}.")
        if span[1] < span[0]:
            raise ValueError(f"`inpaint_spans`: a span must not end before it starts, got {span!r}.")
        # Allow for a length that was rounded to milliseconds.
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
    """Return the spans in which a mask `[N]` is above 0."""
    edges = torch.nn.functional.pad((mask > 0).int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def stretch_mask(mask: Any, num_samples: int) -> torch.Tensor:
    """
    Interpolate a mask linearly to one value per sample. The first and last values go to the first and last samples.

    Args:
        mask: Numbers in 0..1, as a list, array or tensor.
        num_samples (`int`): Samples of the sound.

    Returns:
        `torch.Tensor`: float32 `[num_samples]`.

    Raises:
        ValueError: The mask is not a row of numbers in 0..1.
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


def span_strengths(spans: list[Span], num_samples: int, strength: float) -> torch.Tensor:
    """Return `[num_samples]` strengths: `strength` in the spans, 0 elsewhere."""
    strengths = torch.zeros(num_samples)
    for start, end in spans:
        strengths[start:end] = strength
    return strengths


def frame_strengths(strengths: torch.Tensor, num_samples: int, num_frames: int, hop: int) -> torch.Tensor:
    """
    Return the strength of each latent frame: the highest of its samples. Frames after the end of the sound, which are
    cut off in the end, get the highest strength of the whole sound.

    Args:
        strengths (`torch.Tensor` of shape `[B, num_samples]`): Strengths in 0..1, 0 where the sound stays.
        num_samples (`int`): Samples of the sound.
        num_frames (`int`): Latent frames.
        hop (`int`): Samples per frame.

    Returns:
        `torch.Tensor`: `[B, num_frames]`.
    """
    padded = torch.nn.functional.pad(strengths, (0, num_frames * hop - num_samples))
    frames = padded.unflatten(1, (num_frames, hop)).amax(dim=2)
    frames[:, math.ceil(num_samples / hop) :] = frames.amax(dim=1, keepdim=True)
    return frames


def edit_regions(edited: torch.Tensor, context: int, window: int) -> list[Span]:
    """
    Return the runs of frames that an edit depends on: `context` frames around each run of edited ones, at least a
    window long, merged where they touch.

    Args:
        edited (`torch.Tensor` of shape `[L]`): Bool, with at least as many frames as a window.
        context (`int`): Frames to add on both sides.
        window (`int`): Frames of a window.
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


@dataclass(frozen=True)
class Extension:
    """
    Where an extended sound lies on the grid of latent frames. All positions but `starts` are in samples.

    Args:
        input (`Span`): The input sound. It ends with a frame if it is continued, and starts with one otherwise.
        result (`Span`): The input and the extension.
        new (`Span`): What to generate, to the end of the grid.
        num_frames (`int`): Frames of the grid.
        starts (`list[int]`): First frames of the windows in the order in which they run: away from the input.
    """

    input: Span
    result: Span
    new: Span
    num_frames: int
    starts: list[int]

    def known_frames(self, hop: int) -> torch.Tensor:
        """Return the frames that hold the input, bool `[num_frames]`."""
        known = torch.zeros(self.num_frames, dtype=torch.bool)
        known[self.input[0] // hop : math.ceil(self.input[1] / hop)] = True
        return known


def extend_after(length: int, num_new: int, hop: int, window: int, overlap: int) -> Extension:
    """
    Lay out `num_new` samples after a sound of `length` samples.

    Args:
        length, num_new (`int`): Samples, above 0.
        hop (`int`): Samples per latent frame.
        window (`int`): Frames of a window.
        overlap (`int`): Frames of the sound so far with which each window begins, below `window`.
    """
    begin = -length % hop
    input_end = begin + length
    end = input_end + num_new
    num_frames = max(window, math.ceil(end / hop))
    starts, edge = [], input_end // hop
    while edge * hop < end:
        starts.append(min(max(0, edge - overlap), num_frames - window))
        edge = starts[-1] + window
    return Extension((begin, input_end), (begin, end), (input_end, num_frames * hop), num_frames, starts)


def extend_before(length: int, num_new: int, hop: int, window: int, overlap: int) -> Extension:
    """Lay out `num_new` samples before a sound. See [`extend_after`]; here each window ends with `overlap` frames."""
    begin = math.ceil(num_new / hop) * hop
    input_end = begin + length
    num_frames = max(window, math.ceil(input_end / hop))
    starts, edge = [], begin // hop
    while edge > 0:
        starts.append(min(max(0, edge + overlap - window), num_frames - window))
        edge = starts[-1]
    return Extension((begin, input_end), (begin - num_new, input_end), (0, begin), num_frames, starts)


def crossfade(spans: list[Span], first: int, end: int, fade: int) -> torch.Tensor:
    """
    Return the share of the new sound in samples `first` to `end`, `[end - first]`: 1 in the spans, falling linearly to
    0 over `fade` samples on both sides of each.
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
    """Return samples `first` to `end` of a sound `[..., N]` that is mirrored beyond its ends instead of silent."""
    length = waveform.shape[-1]
    index = torch.arange(first, end) % (2 * length)
    return waveform[..., torch.minimum(index, 2 * length - 1 - index)]
