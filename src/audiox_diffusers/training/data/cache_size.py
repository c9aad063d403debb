"""Estimated size of a latent cache, from a first look at the data."""

import shutil
from pathlib import Path

from ...pipelines import AudioXPipeline
from .first_look import FirstLook
from .windows import WindowSpec

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def bytes_per_record(found: FirstLook, pipe: AudioXPipeline) -> float:
    """Estimate the mean size of the records of a dataset in a cache, from those that were looked at."""
    spec, conditioner, usable = WindowSpec.of(pipe), pipe.conditioner.config, max(1, found.usable)
    shares = {name: count / usable for name, count in found.shares.items()}
    seconds = max(found.seconds / usable, spec.num_samples / spec.sampling_rate)
    # Mean and standard deviation of each channel, and the peak, in single precision.
    total = 4 * (2 * conditioner.latent_channels + 1) * seconds * spec.sampling_rate / spec.hop_length
    if conditioner.audio_type == "mel_spec":
        total += 4 * spec.channels * seconds * spec.sampling_rate

    frame = conditioner.num_frame_tokens * conditioner.condition_dim * pipe.image_encoder.dtype.itemsize
    total += frame * (shares.get("video", 0) * spec.video_fps * seconds + shares.get("image", 0))
    if spec.sync_stride:
        token = conditioner.condition_dim * pipe.sync_encoder.dtype.itemsize
        segment = token * conditioner.num_sync_tokens / spec.num_sync_segments
        rate = spec.sync_fps / spec.sync_stride
        total += segment * (shares.get("video", 0) * rate * seconds + shares.get("image", 0))

    if found.captions:
        tokens = pipe.tokenizer(found.captions, truncation=True).input_ids
        text = conditioner.condition_dim * pipe.text_encoder.dtype.itemsize
        total += text * sum(map(len, tokens)) / usable
    return total


def describe_size(folder: Path, looks: list[FirstLook], pipe: AudioXPipeline) -> str:
    """Return a line that says how large a cache will be, and how much space there is."""
    sizes = [bytes_per_record(found, pipe) for found in looks]
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    note = f"; {readable(free)} are free"
    if any(found.total is None for found in looks):
        each = ", ".join(
            f"{readable(size)} for each record of {found.dataset.source.name}" for found, size in zip(looks, sizes)
        )
        return f"Cache {folder}: about {each}{note}"
    records = [found.usable / max(1, found.looked) * found.total for found in looks]
    total = sum(size * count for size, count in zip(sizes, records, strict=True))
    if total > free:
        note += ", which is too little"
    return f"Cache {folder}: about {readable(total)} for {round(sum(records))} records{note}"


def readable(size: float) -> str:
    """Return a number of bytes with a unit."""
    unit = 0
    while size >= 999.5 and unit < len(UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.3g} {UNITS[unit]}"
