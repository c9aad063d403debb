"""Evaluation of a set of files: features first, in all processes, then the figures."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from .catalog import NETWORKS
from .clips import EvaluationSet
from .config import EvaluationConfig
from .extraction import Extraction
from .figures import Figures
from .metrics import METRICS, choose, lacking, networks_to_save
from .notes import settings, warnings
from .report import EvaluationReport
from .statistics_files import check_statistics, load_origin, load_statistics


class OneProcess:
    """Replacement for `PartialState` when one process evaluates alone."""

    process_index, num_processes, is_main_process = 0, 1, True

    def wait_for_everyone(self) -> None:
        """Return at once."""


def choose_metrics(clips: EvaluationSet, config: EvaluationConfig, saving: bool = False) -> list[str]:
    """Return the names of the metrics to run. For `saving` and errors see [`choose`]."""
    return choose(config.metrics, _available(clips, config), saving)


def _available(clips: EvaluationSet, config: EvaluationConfig) -> dict[str, bool]:
    return {
        "reference": bool(clips.reference) or config.reference_statistics is not None,
        "reference_files": bool(clips.reference),
        "pairs": bool(clips.pairs),
        "captions": bool(clips.captioned),
        "videos": bool(clips.filmed),
    }


def run_evaluation(
    clips: EvaluationSet,
    config: EvaluationConfig,
    progress: Callable[[str, int, int], None] | None = None,
    statistics: Path | None = None,
    state: PartialState | OneProcess | None = None,
) -> EvaluationReport | None:
    """
    Compute metrics. Features are kept in `config.cache`, so an interrupted run resumes. Several processes, as
    `accelerate launch` starts them, share the files.

    Args:
        clips: The files.
        config: How to evaluate.
        progress: Called with the name of a network, the number of files done and the number of files.
        statistics: File to write the mean and covariance of the generated set to.
        state: The processes that share the work. Defaults to all of `accelerate launch`.

    Returns:
        The report in the first process, `None` in the others.

    Raises:
        ValueError: A metric that was asked for cannot run, or the reference statistics do not fit.
    """
    chosen = choose_metrics(clips, config, saving=statistics is not None)
    skipped = {} if config.metrics is not None else lacking(_available(clips, config))
    skipped |= _check_reference_statistics(chosen, config)
    saved = [] if statistics is None else networks_to_save(config.metrics)
    # Shares take different times, so waiting for the slowest process has no limit.
    state = state or PartialState(cpu=True, timeout=timedelta(days=365))
    extraction = Extraction(clips, config, state, progress or (lambda *_: None))
    metrics = [METRICS[name] for name in chosen if name not in skipped]
    for network in dict.fromkeys([*(metric.network for metric in metrics), *saved]):
        try:
            extraction.compute(network, [metric for metric in metrics if metric.network == network])
        except (FileNotFoundError, ValueError) as error:
            if config.metrics is not None:
                name = next(name for name in config.metrics if METRICS[name].network == network)
                raise ValueError(f"--metrics {name}: {error}") from None
            extraction.unavailable[network] = str(error)
    extraction.compute_facts()
    state.wait_for_everyone()
    extraction.gather()
    for network, reason in extraction.unavailable.items():
        skipped |= {name: reason for name in chosen if METRICS[name].network == network}
    if not state.is_main_process:
        return None

    computer, figures = Figures(extraction), []
    for name in chosen:
        if name not in skipped:
            try:
                figures.append(computer.figure(name))
            except ValueError as error:
                skipped[name] = str(error)
    available = [network for network in saved if network not in extraction.unavailable]
    counts = {} if statistics is None else computer.save_statistics(statistics, available)
    return EvaluationReport(
        settings(extraction), figures, skipped, extraction.excluded, warnings(extraction, figures), counts
    )


def _check_reference_statistics(chosen: list[str], config: EvaluationConfig) -> dict[str, str]:
    """Return why metrics cannot use the file of reference statistics, by name."""
    path = config.reference_statistics
    if path is None:
        return {}
    check_statistics(path)
    reasons = {}
    for name in chosen:
        metric = METRICS[name]
        if "reference" in metric.needs:
            try:
                _check_fit(path, metric.network, config)
            except ValueError as error:
                if config.metrics is not None:
                    raise ValueError(f"--metrics {name}: {error}") from None
                reasons[name] = str(error)
    return reasons


def _check_fit(path: Path, network: str, config: EvaluationConfig) -> None:
    width, expected = len(load_statistics(path, network).mean), NETWORKS[network].input.width
    if width != expected:
        raise ValueError(f"{path}: has embeddings of width {width}, but those of {network} have {expected}")
    origin = load_origin(path, network)
    if origin is None:
        return
    try:
        identity = f"{network} {NETWORKS[network].identity(config.weights)}"
    except (FileNotFoundError, ValueError):
        return  # Without the network, the metric is skipped anyway.
    if origin.weights != identity:
        raise ValueError(f"{path}: was computed with other weights ({origin.weights}) than those in use ({identity})")
