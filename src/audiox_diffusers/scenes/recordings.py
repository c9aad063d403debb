"""Recordings that replace synthesised sounds."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..media import load_audio
from .sounds import SOUNDS

Recordings = Mapping[str, Sequence[np.ndarray]]

AUDIBLE = 0.02  # of the peak: softer samples at the start are cut off


def load_recordings(folder: str | os.PathLike, sampling_rate: int) -> dict[str, list[np.ndarray]]:
    """
    Load recordings of some classes, for example from `bell.wav` and from the files in a folder `bell`.

    Args:
        folder: Folder with files and folders named after keys of `SOUNDS`. It may contain nothing else, except hidden
            files.
        sampling_rate: Sampling rate to resample to, in Hz.

    Returns:
        Mono float32 waveforms `[samples]` for each class found, in the order of their names. Each starts at its first
        audible sample.

    Raises:
        FileNotFoundError, NotADirectoryError: If the folder does not exist or is a file.
        MediaError: If a file cannot be read.
        ValueError: If a name is not a class, a class has no files, a sound is silent, or there are no files.
    """
    folder = Path(folder)
    recordings: dict[str, list[np.ndarray]] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        name = path.name if path.is_dir() else path.stem
        if name not in SOUNDS:
            raise ValueError(f"{path}: must be named after one of {', '.join(SOUNDS)}")
        files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: contains no files")
        recordings.setdefault(name, []).extend(_load(file, sampling_rate) for file in files)
    if not recordings:
        raise ValueError(f"{folder}: contains no files or folders named after one of {', '.join(SOUNDS)}")
    return recordings


def _load(path: Path, sampling_rate: int) -> np.ndarray:
    waveform = load_audio(path, sampling_rate=sampling_rate, channels=1)[0][0].numpy()
    level = np.abs(waveform)
    if not level.max() > 0:
        raise ValueError(f"{path}: is silent")
    return waveform[int(np.argmax(level > AUDIBLE * level.max())) :]
