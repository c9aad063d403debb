"""Recorded sounds, in the place of synthesised ones."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..media import load_audio
from .sounds import SOUNDS

Recordings = Mapping[str, Sequence[np.ndarray]]

HEARD = 0.02  # of the peak: what is before it is cut off, so that a sound begins at once


def load_recordings(folder: str | os.PathLike, sampling_rate: int) -> dict[str, list[np.ndarray]]:
    """
    Recorded sounds of some classes: the files in the folder `bell`, say, and the file `bell.wav`.

    Args:
        folder: with folders or files that are named after a key of `SOUNDS`. Nothing else may be in it but hidden
            files.
        sampling_rate: to resample to, in Hz.

    Returns:
        Mono float32 waveforms `[samples]` for each class that is there, in the order of their names, each beginning
        where it is first heard.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or it is a file.
        MediaError: a file cannot be read.
        ValueError: a name is not that of a class, a class has no files, a sound is silent, or there is none.
    """
    folder = Path(folder)
    recordings: dict[str, list[np.ndarray]] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        name = path.name if path.is_dir() else path.stem
        if name not in SOUNDS:
            raise ValueError(f"{path}: must be named after one of {', '.join(SOUNDS)}")
        files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: holds no files")
        recordings.setdefault(name, []).extend(_load(file, sampling_rate) for file in files)
    if not recordings:
        raise ValueError(f"{folder}: holds no files or folders named after one of {', '.join(SOUNDS)}")
    return recordings


def _load(path: Path, sampling_rate: int) -> np.ndarray:
    waveform = load_audio(path, sampling_rate=sampling_rate, channels=1)[0][0].numpy()
    level = np.abs(waveform)
    if not level.max() > 0:
        raise ValueError(f"{path}: is silent")
    return waveform[int(np.argmax(level > HEARD * level.max())) :]
