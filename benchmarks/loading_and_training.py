"""
Compare the speed of loading training data with the speed of a training step of the small model:

    python benchmarks/loading_and_training.py [--dataset FOLDER]

Prints records per second with 0 to 4 workers, uncached and cached, and samples per second of a training step. Loading is
not the bottleneck if it is faster.
"""

import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from common import create_parser
from training_runs import create_trainer

from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.testing import create_small_pipeline
from audiox_diffusers.training import Trainer
from audiox_diffusers.training.data.loading import RecordBatches, load_batches

BATCH = 8


def records_per_second(records: RecordBatches, num_workers: int, batches: int) -> float:
    """Time loading alone, without the first batches, which wait for the workers to start."""
    loaded = load_batches(records, num_workers)
    for _ in islice(loaded, max(1, num_workers)):
        pass
    start = time.perf_counter()
    for _ in islice(loaded, batches):
        pass
    return batches * BATCH / (time.perf_counter() - start)


def samples_per_second(trainer: Trainer, steps: int) -> float:
    """Time training steps on a loaded batch."""
    batch = next(load_batches(trainer.records, 0))
    trainer._train_step(iter([batch]))
    start = time.perf_counter()
    for _ in range(steps):
        trainer._train_step(iter([batch]))
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--dataset", help="folder of clips (default: 24 rendered scenes of 2 s)")
    parser.add_argument("--batches", type=int, default=12, help="timed batches (default: 12)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_small_pipeline().save_pretrained(folder / "model")
        dataset = args.dataset or str(write_scenes(folder / "scenes", 24, seconds=2.0))
        rows = {}
        training = {
            "pretrained_model_name_or_path": folder / "model",
            "dataset": dataset,
            "max_train_steps": 1,
            "train_batch_size": BATCH,
            "min_seconds": 0.3,
        }
        for kind, options in (("decoded", {}), ("cached", {"cache_latents": folder / "cache"})):
            trainer = create_trainer(training | options | {"output_dir": folder / kind})
            rows[kind] = [records_per_second(trainer.records, workers, args.batches) for workers in range(5)]
            rows[kind].append(samples_per_second(trainer, args.batches))
        print(f"{torch.get_num_threads()} threads, batches of {BATCH}\n")
        print("| | " + " | ".join(f"{workers} workers" for workers in range(5)) + " | training step |")
        print("|---" * 7 + "|")
        for kind, figures in rows.items():
            print(f"| {kind}, records per second | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |")
        for kind, figures in rows.items():
            print(f"{kind}: loading with 2 workers is {figures[2] / figures[5]:.1f} times as fast as a step")


if __name__ == "__main__":
    main()
