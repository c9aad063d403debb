"""Metrics of how well a model follows its prompts, on scenes with known answers."""

from .classifier import SoundClassifier
from .items import BENCH_SEED, Bench, Item
from .onsets import detect_onsets, onset_f1
from .report import Figure, Report, SweepReport
from .run import ALL_TASKS, run_bench, run_sweep

__all__ = [
    "ALL_TASKS",
    "BENCH_SEED",
    "Bench",
    "Figure",
    "Item",
    "Report",
    "SoundClassifier",
    "SweepReport",
    "detect_onsets",
    "onset_f1",
    "run_bench",
    "run_sweep",
]
