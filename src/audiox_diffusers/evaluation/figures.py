"""Metrics from extracted features."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..bench.onsets import TOLERANCE, count_hits
from .catalog import NETWORKS
from .extraction import Extraction
from .metrics import METRICS, Metric
from .networks.aesthetics import AXES
from .networks.synchformer import Synchformer
from .report import Figure
from .statistics import (
    GaussianStatistics,
    bootstrap_error,
    bootstrap_ratio,
    cosine_similarity,
    frechet_distance_at_infinity,
    inception_score,
    jackknife_frechet_distance,
    kernel_distance,
    kl_divergence,
    merged,
    synchronization_error,
)
from .statistics_files import load_statistics, save_statistics

JACKKNIFE_GROUPS = 10
# Quadratic metrics compare at most this many embeddings, evenly spaced.
MOST_KERNEL_EMBEDDINGS = 10_000

# Value, error, number of clips, and further settings.
Result = tuple[float, float | None, int, dict]


class Figures:
    """
    Computes metrics.

    Args:
        extraction: The features.
    """

    def __init__(self, extraction: Extraction):
        self.extraction = extraction
        self.clips, self.config = extraction.clips, extraction.config

    def figure(self, name: str) -> Figure:
        """Compute a metric of the catalog; raise `ValueError` if files or features are missing."""
        metric = METRICS[name]
        value, error, count, details = getattr(self, f"_{metric.kind.replace('-', '_')}")(metric)
        identity = self.extraction.identity(metric.network)
        licence = NETWORKS[metric.network].licence
        return Figure(name, metric.key, value, error, metric.better, count, identity, licence, details)

    def _groups(self, network: str) -> tuple[list[GaussianStatistics], int]:
        groups, clips = [], 0
        for clips, windows in enumerate(
            self.extraction.each(list(self.clips.generated.values()), network, "windows"), 1
        ):
            if len(groups) < JACKKNIFE_GROUPS:
                groups.append(GaussianStatistics.empty(windows.shape[1]))
            groups[clips % len(groups)].update(windows)
        if not clips:
            raise ValueError("no generated file has features")
        return groups, clips

    def save_statistics(self, path: Path) -> None:
        """Write the statistics of the generated set for every network with embeddings of it."""
        statistics = {}
        for network in {metric.network for metric in METRICS.values() if metric.kind == "frechet"}:
            try:
                groups, _ = self._groups(network)
            except ValueError:
                continue
            statistics[network] = merged(groups)
        save_statistics(path, statistics)

    def reference_statistics(self, network: str) -> GaussianStatistics:
        """Return the statistics of the reference set, from its files or from a file of statistics."""
        if self.config.reference_statistics is not None:
            return load_statistics(self.config.reference_statistics, network)
        statistics = None
        for windows in self.extraction.each(list(self.clips.reference.values()), network, "windows"):
            statistics = statistics or GaussianStatistics.empty(windows.shape[1])
            statistics.update(windows)
        if statistics is None:
            raise ValueError("no reference file has features")
        return statistics

    def _frechet(self, metric: Metric) -> Result:
        groups, clips = self._groups(metric.network)
        reference = self.reference_statistics(metric.network)
        value, error = jackknife_frechet_distance(groups, reference)
        samples = sum(group.count for group in groups)
        details = {"embeddings": samples, "reference_embeddings": reference.count, "width": len(reference.mean)}
        return value, error, clips, details

    def _windows(self, paths: Sequence[Path], network: str) -> tuple[np.ndarray, int]:
        windows = list(self.extraction.each(paths, network, "windows"))
        if not windows:
            raise ValueError("no file has features")
        return np.concatenate(windows), len(windows)

    def _frechet_inf(self, metric: Metric) -> Result:
        windows, clips = self._windows(list(self.clips.generated.values()), metric.network)
        value, fit = frechet_distance_at_infinity(windows, self.reference_statistics(metric.network))
        return value, None, clips, {"r2": fit, "embeddings": len(windows)}

    def _kernel(self, metric: Metric) -> Result:
        if not self.clips.reference:
            raise ValueError("needs the reference files, not their statistics")
        generated, clips = self._windows(list(self.clips.generated.values()), metric.network)
        reference, _ = self._windows(list(self.clips.reference.values()), metric.network)
        details = {"embeddings": len(generated), "reference_embeddings": len(reference), "bandwidth": "generated"}
        return kernel_distance(_evenly(generated), _evenly(reference)), None, clips, details

    def _inception(self, metric: Metric) -> Result:
        with tempfile.TemporaryFile() as file:
            count = 0
            for logits in self.extraction.each(list(self.clips.generated.values()), metric.network, "logits"):
                file.write(logits.astype(np.float32).tobytes())
                count += 1
            if not count:
                raise ValueError("no generated file has features")
            file.flush()
            rows = np.memmap(file, np.float32, "r", shape=(count, file.tell() // 4 // count))
            value, deviation = inception_score(rows)
        return value, deviation, count, {"splits": 10, "seed": 2020}

    def _kl(self, metric: Metric) -> Result:
        values = []
        for name in self.clips.pairs:
            pair = [
                self.extraction.features(files[name], metric.network)
                for files in (self.clips.generated, self.clips.reference)
            ]
            if None not in pair:
                generated, reference = (features["logits"][None].numpy() for features in pair)
                values.append(kl_divergence(generated, reference)[0])
        return _mean(values, {"direction": "KL(reference || generated)"})

    def _clap(self, metric: Metric) -> Result:
        values = []
        for name in self.clips.captioned:
            features = self.extraction.features(self.clips.generated[name], metric.network)
            text = self.extraction.cache.get(
                self.clips.captions[name], self.extraction.identity(metric.network), "text"
            )
            if features is not None and text is not None:
                values.append(cosine_similarity(features["windows"].numpy(), text["text"][None].numpy())[0])
        return _mean(values, {})

    def _desync(self, metric: Metric) -> Result:
        cached = [self.extraction.cache.get(*self.extraction.synchronization_key(name)) for name in self.clips.filmed]
        logits = [features["logits"].numpy() for features in cached if features is not None]
        values = [] if not logits else list(synchronization_error(np.stack(logits), Synchformer.offsets))
        return _mean(values, {"unit": "s"})

    def _onsets(self, metric: Metric) -> Result:
        hits, totals = [], []
        for name in self.clips.pairs:
            pair = [
                self.extraction.features(files[name], metric.network)
                for files in (self.clips.generated, self.clips.reference)
            ]
            if None not in pair:
                generated, reference = (features["onsets"].tolist() for features in pair)
                hits.append(count_hits(generated, reference))
                totals.append(len(generated) + len(reference))
        if not sum(totals):
            raise ValueError("no pair of files has an onset")
        value, error = bootstrap_ratio(2 * np.array(hits), np.array(totals))
        return value, error, len(hits), {"tolerance": TOLERANCE, "unit": "s"}

    def _aesthetics(self, metric: Metric) -> Result:
        scores = self.extraction.each(list(self.clips.generated.values()), metric.network, "scores")
        return _mean([float(score[AXES.index(metric.key)]) for score in scores], {"range": "1 to 10"})


def _mean(values: list[float], details: dict) -> Result:
    if not values:
        raise ValueError("no clip has the features that this metric needs")
    values = np.array(values)
    return float(values.mean()), bootstrap_error(values), len(values), details


def _evenly(embeddings: np.ndarray) -> np.ndarray:
    if len(embeddings) <= MOST_KERNEL_EMBEDDINGS:
        return embeddings
    return embeddings[np.linspace(0, len(embeddings) - 1, MOST_KERNEL_EMBEDDINGS).astype(int)]
