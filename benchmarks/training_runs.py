"""Functions that benchmarks of training share."""

import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import load_audio, log_mel_distance
from audiox_diffusers.training import FullTraining, Trainer, parse_args


def create_trainer(options: dict[str, object], others: Sequence[str] = (), method: type = FullTraining) -> Trainer:
    """
    Create a trainer that loads data in this process and writes no checkpoints.

    Args:
        options: Options of the training script without `--`. A list is passed as several values.
        others: Further arguments, which override `options`.
        method: Training method.
    """
    arguments = []
    for name, value in {"dataloader_num_workers": 0, "checkpointing_steps": 10**9, **options}.items():
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{name}", *map(str, values)]
    return Trainer(parse_args([*arguments, *others], method), method)


class Clip(NamedTuple):
    """A clip with its prompts; `sound` is `[channels, samples]`."""

    caption: str
    sound: np.ndarray
    video: Path | None = None


def distance_to_clips(sounds: Sequence[np.ndarray], clips: Sequence[Clip], rate: int) -> np.ndarray:
    """Return the log-mel distance between each sound and its clip, shape `[clips]`."""
    return np.array([log_mel_distance(sound, clip.sound, rate) for sound, clip in zip(sounds, clips, strict=True)])


def read_clips(folder: Path, pipe: AudioXPipeline) -> list[Clip]:
    """Read the clips of a dataset folder, at most a window of each."""
    rate, channels, clips = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels, []
    for line in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines()):
        path = folder / line["file_name"]
        sound, _ = load_audio(path, rate, channels, duration=pipe.window_samples / rate)
        is_video = mimetypes.guess_type(path)[0].startswith("video")
        clips.append(Clip(line["caption"], sound[:, : pipe.window_samples].numpy(), path if is_video else None))
    return clips
