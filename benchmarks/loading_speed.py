"""
Measure how fast video clips are loaded for training. Run by data_loading.py, with this version and an earlier one.

    python benchmarks/loading_speed.py FOLDER RECORDS

Prints JSON: for each model and number of workers, CPU seconds and seconds for a record.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data import records as record_module
from audiox_diffusers.training.data.loading import RecordBatches, load_batches

WORKERS = (0, 1, 2)

# The windows of the released models. Each version takes the values that it knows.
AUDIOX = {
    "sampling_rate": 44100,
    "channels": 2,
    "hop_length": 2048,
    "context_frames": 12,
    "num_samples": 483328,
    "window_samples": 483328,
    "seconds": 483328 / 44100,
    "prompt_samples": 441000,
    "video_fps": 5.0,
    "num_frames": 50,
    "frame_size": 224,
    "sync_fps": 0.0,
    "num_sync_frames": 0,
    "sync_size": 0,
}
SYNCHFORMER = {"sync_fps": 25.0, "num_sync_frames": 250, "sync_size": 224, "sync_segment": 16, "sync_stride": 8}
MODELS = {"AudioX": AUDIOX, "AudioX-MAF": AUDIOX | SYNCHFORMER}


class Clips(NamedTuple):
    """The clips of a folder as one shard."""

    name: str
    num_shards: int = 1

    def rows(self, shard: int, start: int = 0) -> Iterator[dict]:
        for path in sorted(Path(self.name).glob("*.mp4"))[start:]:
            yield {"video": str(path)}


def create_reader(model: str) -> record_module.RecordReader:
    """Create a reader that decodes video and sound of every record."""
    spec = record_module.WindowSpec
    names = {field.name for field in fields(spec)}
    window = spec(**{name: value for name, value in MODELS[model].items() if name in names})
    masking = MaskingConfig(task_weights={"video": 1.0})
    return record_module.RecordReader(window, [{"video": "video"}], masking, "random", 0.5, 0)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def seconds_per_record(folder: str, model: str, workers: int, count: int) -> tuple[float, float]:
    """Return CPU seconds of this process and seconds, for each of `count` records after the first ones."""
    batches = RecordBatches([Clips(folder)], [1.0], create_reader(model), 1, 0, 8, 0, 1, 8)
    loaded = load_batches(batches, workers)
    for _ in islice(loaded, max(1, workers)):
        pass
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in islice(loaded, count):
        pass
    return (cpu_seconds() - cpu) / count, (time.perf_counter() - wall) / count


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, count = sys.argv[1], int(sys.argv[2])
    figures = {
        model: [seconds_per_record(folder, model, workers, count * max(1, workers)) for workers in WORKERS]
        for model in MODELS
    }
    print(json.dumps(figures))
