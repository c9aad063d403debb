"""Writing random scenes as a dataset folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..atomic import replacing
from ..media import save_video
from .recordings import load_recordings
from .scene import check_seed, random_scene


def write_scenes(
    folder: str | os.PathLike,
    count: int,
    seed: int = 0,
    seconds: float = 4.0,
    sampling_rate: int = 16000,
    fps: float = 25,
    size: int = 96,
    classes: Sequence[str] | None = None,
    sounds: str | os.PathLike | None = None,
) -> Path:
    """
    Write random scenes as a folder for `datasets.load_dataset`.

    The folder has videos with sound, `00000.mp4` and so on, and `metadata.jsonl` with the columns `file_name` (loaded as
    `video`), `caption` and `events` (a list of `sound`, `start` and `duration`, in seconds). It appears only when it is
    complete.

    Args:
        folder: Folder to write; it must be empty or not exist.
        count: Number of scenes, 1 or more.
        seed: Random seed, 0 or more. A larger `count` adds scenes to those of a smaller one.
        seconds, classes: See [`random_scene`].
        sampling_rate: See [`Scene.audio`].
        fps, size: See [`Scene.frames`].
        sounds: Folder with recordings that replace synthesised sounds; see [`load_recordings`].

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` is a file or not empty.
        ValueError: If an argument is out of range.
        FileNotFoundError, NotADirectoryError, MediaError: If `sounds` cannot be read; see [`load_recordings`].
    """
    folder = Path(folder)
    check_seed(seed)
    if count < 1:
        raise ValueError(f"`count` must be 1 or more, got {count!r}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not an empty folder")
    recordings = None if sounds is None else load_recordings(sounds, sampling_rate)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        temporary.mkdir()
        with open(temporary / "metadata.jsonl", "w", encoding="utf-8") as metadata:
            for index in range(count):
                scene = random_scene(scene_seed(seed, index), seconds, classes=classes)
                name = f"{index:05}.mp4"
                audio = scene.audio(sampling_rate, recordings=recordings)
                save_video(temporary / name, scene.frames(fps, size), audio, sampling_rate, fps=fps)
                events = [asdict(event) for event in scene.events]
                line = {"file_name": name, "caption": scene.caption(), "events": events}
                metadata.write(json.dumps(line) + "\n")
    return folder


def scene_seed(seed: int, index: int) -> int:
    """Return the seed of a scene of `write_scenes`. Different seeds give different scenes."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
