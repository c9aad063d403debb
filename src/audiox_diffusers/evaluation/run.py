"""Evaluation of a set of files: features first, in all processes, then the figures."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from .clips import EvaluationSet
from .config import EvaluationConfig
from .extraction import Extraction
from .figures import Figures
from .metrics import METRICS, choose
from .notes import settings, warnings
from .report import EvaluationReport
from .statistics_files import check_statistics


class OneProcess:
    """Replacement for `PartialState` when one process evaluates alone."""

    process_index, num_processes, is_main_process = 0, 1, True

    def wait_for_everyone(self) -> None:
        """Return at once."""


def choose_metrics(clips: EvaluationSet, config: EvaluationConfig) -> list[str]:
    """Return the names of the metrics to run; `ValueError` if one that was asked for lacks files."""
    has = {
        "reference": bool(clips.reference) or config.reference_statistics is not None,
        "pairs": bool(clips.pairs),
        "captions": bool(clips.captions),
        "videos": bool(clips.videos),
    }
    return choose(config.metrics, has)


def run_evaluation(
    clips: EvaluationSet,
    config: EvaluationConfig,
    progress: Callable[[str, int, int], None] | None = None,
    statistics: Path | None = None,
    state: PartialState | OneProcess | None = None,
) -> EvaluationReport | None:
    """
    Compute metrics. Features are kept in `config.cache`, so an interrupted run resumes; with `accelerate launch`, each
    process computes its share of them.

    Args:
        clips: The files.
        config: How to evaluate.
        progress: Called with the name of a network, the number of files done and the number of files.
        statistics: File to write the mean and covariance of the generated set to.
        state: The processes that share the work. Defaults to all of `accelerate launch`.

    Returns:
        The report in the first process, `None` in the others.

    Raises:
        ValueError: A metric that was asked for cannot run.
    """
    chosen = choose_metrics(clips, config)
    if config.reference_statistics is not None:
        check_statistics(config.reference_statistics)
    # Shares take different times, so waiting for the slowest process has no limit.
    state = state or PartialState(cpu=True, timeout=timedelta(days=365))
    extraction = Extraction(clips, config, state, progress or (lambda *_: None))
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(METRICS[metric].network for metric in chosen):
        try:
            extraction.compute(name, [METRICS[metric] for metric in chosen if METRICS[metric].network == name])
        except (FileNotFoundError, ValueError) as error:
            affected = [metric for metric in chosen if METRICS[metric].network == name]
            if config.metrics is not None:
                raise ValueError(f"--metrics {affected[0]}: {error}") from None
            skipped |= dict.fromkeys(affected, str(error))
    extraction.compute_facts()
    state.wait_for_everyone()
    extraction.gather_excluded()
    if not state.is_main_process:
        return None

    computer, figures = Figures(extraction), []
    for name in chosen:
        if name not in skipped:
            try:
                figures.append(computer.figure(name))
            except ValueError as error:
                skipped[name] = str(error)
    report = EvaluationReport(
        settings(extraction), figures, skipped, extraction.excluded, warnings(extraction, chosen)
    )
    if statistics is not None:
        computer.save_statistics(statistics)
    return report
