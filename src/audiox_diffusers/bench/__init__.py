"""Metrics of how well a model follows its prompts, on scenes with known answers."""

from typing import TYPE_CHECKING

from .._imports import lazy_names

if TYPE_CHECKING:
    from .classifier import SoundClassifier
    from .items import BENCH_SEED, Bench, Item
    from .onsets import detect_onsets, onset_f1
    from .options import ALL_TASKS
    from .report import Figure, Report, SweepReport
    from .run import run_bench, run_sweep

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "classifier": ["SoundClassifier"],
        "items": ["BENCH_SEED", "Bench", "Item"],
        "onsets": ["detect_onsets", "onset_f1"],
        "options": ["ALL_TASKS"],
        "report": ["Figure", "Report", "SweepReport"],
        "run": ["run_bench", "run_sweep"],
    },
)
