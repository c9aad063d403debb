"""Files that grow while a sound is decoded, so that clients get its beginning early."""

import struct
from pathlib import Path

import numpy as np

from ..pipelines import AudioXPipeline
from .jobs import Job


def begin_stream(job: Job, pipe: AudioXPipeline, num_samples: int) -> None:
    """Create the file of a sound with a known number of samples. It starts with a header if the format is WAV."""
    channels, rate = pipe.vae.config.audio_channels, pipe.vae.config.sampling_rate
    header = _wav_header(channels, rate, num_samples) if job.task.format == "wav" else b""
    _path(job).write_bytes(header)
    job.update(stream_size=len(header) + 2 * channels * num_samples)


def append(job: Job, piece: np.ndarray) -> None:
    """Append samples `[channels, n]`, rounded as in other WAV files."""
    samples = (piece.clip(-1, 1).T * 32768).round().clip(-32768, 32767).astype("<i2")
    with _path(job).open("ab") as file:
        file.write(samples.tobytes())
    job.update(streamed=_path(job))


def _path(job: Job) -> Path:
    return job.task.folder / "stream"


def _wav_header(channels: int, rate: int, num_samples: int) -> bytes:
    size = 2 * channels * num_samples
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    return struct.pack("<4sI8sI16s4sI", b"RIFF", 36 + size, b"WAVEfmt ", len(form), form, b"data", size)
