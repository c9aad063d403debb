"""Random scenes as a folder of videos that `datasets` loads."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import numpy as np

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
    Write random scenes as videos with sound, for `datasets.load_dataset(folder)`: `00000.mp4` and so on, and
    `metadata.jsonl` with the columns `video` (there called `file_name`), `caption` and `events` (a list of `sound`,
    `start` and `duration`, in seconds). The folder appears only when it is complete.

    Args:
        folder: where to write; it must not exist or be empty.
        count: how many scenes, 1 or more.
        seed: of the first scene and the ones after it; scenes of another seed are other ones, and a larger `count`
            adds to the same ones. A whole number, 0 or more.
        seconds, classes: as of [`random_scene`].
        sampling_rate: as of [`Scene.audio`].
        fps, size: as of [`Scene.frames`].
        sounds: a folder of recorded sounds that some classes have instead of synthesised ones; see
            [`load_recordings`].

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` is a file, or is not empty.
        ValueError: an argument is out of range, or `sounds` is not as [`load_recordings`] takes it, which also tells
            the other errors of it.
    """
    folder = Path(folder)
    check_seed(seed)
    if count < 1:
        raise ValueError(f"`count` must be 1 or more, got {count!r}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not an empty folder")
    recordings = None if sounds is None else load_recordings(sounds, sampling_rate)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{uuid4().hex}")
    temporary.mkdir()
    try:
        with open(temporary / "metadata.jsonl", "w", encoding="utf-8") as metadata:
            for index in range(count):
                scene = random_scene(scene_seed(seed, index), seconds, classes=classes)
                name = f"{index:05}.mp4"
                audio = scene.audio(sampling_rate, recordings=recordings)
                save_video(temporary / name, scene.frames(fps, size), audio, sampling_rate, fps=fps)
                events = [asdict(event) for event in scene.events]
                line = {"file_name": name, "caption": scene.caption(), "events": events}
                metadata.write(json.dumps(line) + "\n")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return folder


def scene_seed(seed: int, index: int) -> int:
    """Seed of one scene among those of `write_scenes`: sets of neighbouring seeds have no scene in common."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
