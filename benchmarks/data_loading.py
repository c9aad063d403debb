"""
How fast training data is loaded, and how fast a training step of the small model uses it up.

`python benchmarks/data_loading.py` renders a set of scenes, or takes one with `--dataset`; it prints records a second
for 0 to 4 workers, uncached and cached, and samples a second of a step: where loading is the faster one, it is not
the bottleneck.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.small_model import create_small_pipeline
from audiox_diffusers.training import Trainer, parse_args
from audiox_diffusers.training.data.loading import RecordBatches, load_batches

BATCH = 8


def trainer_for(model: Path, dataset: str, folder: Path, *options: object) -> Trainer:
    """A run that has not begun."""
    arguments = ["--pretrained_model_name_or_path", model, "--dataset", dataset, "--output_dir", folder / "out"]
    arguments += ["--max_train_steps", 1, "--train_batch_size", BATCH, "--min_seconds", 0.3, *options]
    return Trainer(parse_args([str(word) for word in arguments]))


def records_a_second(records: RecordBatches, num_workers: int, batches: int) -> float:
    """Loading alone; the first batches, which wait for the workers to start, do not count."""
    loaded = load_batches(records, num_workers)
    for _ in islice(loaded, max(1, num_workers)):
        pass
    start = time.perf_counter()
    for _ in islice(loaded, batches):
        pass
    return batches * BATCH / (time.perf_counter() - start)


def samples_a_second(trainer: Trainer, steps: int) -> float:
    """Training steps on a batch that is there."""
    batch = next(load_batches(trainer.records, 0))
    trainer._train_step(iter([batch]))
    start = time.perf_counter()
    for _ in range(steps):
        trainer._train_step(iter([batch]))
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="a folder of clips; by default 24 scenes of 2 s are rendered")
    parser.add_argument("--batches", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_small_pipeline().save_pretrained(folder / "model")
        dataset = args.dataset or str(write_scenes(folder / "scenes", 24, seconds=2.0))
        rows = {}
        for kind, options in (("decoded", []), ("cached", ["--cache_latents", folder / "cache"])):
            trainer = trainer_for(folder / "model", dataset, folder, *options)
            rows[kind] = [records_a_second(trainer.records, workers, args.batches) for workers in range(5)]
            rows[kind].append(samples_a_second(trainer, args.batches))
        print(f"{torch.get_num_threads()} threads, batches of {BATCH}\n")
        print("| | " + " | ".join(f"{workers} workers" for workers in range(5)) + " | a training step |")
        print("|---" * 7 + "|")
        for kind, figures in rows.items():
            print(f"| {kind}, records a second | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |")
        for kind, figures in rows.items():
            print(f"{kind}: loading with 2 workers is {figures[2] / figures[5]:.1f} times as fast as a step")


if __name__ == "__main__":
    main()
