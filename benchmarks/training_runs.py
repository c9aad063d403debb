"""Functions that benchmarks of training share."""

import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import seeded

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


BATCH = 8  # sounds that are generated together
# Modules of the transformer that get LoRA layers.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class Clip(NamedTuple):
    """A clip with its prompts; `sound` is `[channels, samples]`."""

    caption: str
    sound: np.ndarray
    video: Path | None = None


def cut(sound: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-pad a sound to `length` samples."""
    return np.pad(sound[:, :length], ((0, 0), (0, max(0, length - sound.shape[1]))))


def distances(sound: np.ndarray, clips: Sequence[Clip], length: int, rate: int) -> list[float]:
    """Return the log-mel distance between a sound and each clip, over the first `length` samples."""
    sound = cut(sound, length)
    return [log_mel_distance(sound, cut(clip.sound, length), rate) for clip in clips]


def generate(pipe: AudioXPipeline, captions: Sequence[str], seconds: float, **options: object) -> list[np.ndarray]:
    """Return a sound for each caption, with fixed seeds."""
    sounds = []
    for first in range(0, len(captions), BATCH):
        batch = list(captions[first : first + BATCH])
        generator = seeded(range(first, first + len(batch)))
        sounds += list(pipe(batch, audio_length_in_s=seconds, generator=generator, **options).audios)
    return sounds


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
