"""Metrics from extracted features."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
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
    grouped_statistics,
    inception_score,
    jackknife_frechet_distance,
    jackknife_kernel_distance,
    kl_divergence,
    median_distance,
    synchronization_error,
)
from .statistics_files import Origin, known_count, load_statistics, save_statistics

JACKKNIFE_GROUPS = 10
JACKKNIFE = f"jackknife over {JACKKNIFE_GROUPS} groups of clips"
BOOTSTRAP = "bootstrap over clips, 1000 resamples, seed 0"
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
        network = NETWORKS[metric.network]
        return Figure(
            name,
            metric.key,
            value,
            error,
            metric.better,
            count,
            self.extraction.identity(metric.network),
            network.licence,
            asdict(network.input),
            details,
        )

    def _generated(self, network: str, feature: str) -> Iterator[np.ndarray]:
        return self.extraction.each(list(self.clips.generated.values()), network, feature)

    def _reference(self, network: str, feature: str) -> Iterator[np.ndarray]:
        return self.extraction.each(list(self.clips.reference.values()), network, feature)

    def _groups(self, network: str) -> list[GaussianStatistics]:
        groups = grouped_statistics(self._generated(network, "windows"), JACKKNIFE_GROUPS)
        if not groups:
            raise ValueError("no generated file has features")
        return groups

    def save_statistics(self, path: Path, networks: Sequence[str]) -> dict[str, int]:
        """
        Write the statistics of the generated set for some networks.

        Returns:
            The number of embeddings by network, without networks that have fewer than two.
        """
        statistics, origins = {}, {}
        for network in networks:
            groups = grouped_statistics(self._generated(network, "windows"), 1)
            if groups and groups[0].count > 1:
                statistics[network] = groups[0]
                origins[network] = Origin(self.extraction.identity(network), self.config.audio_length_in_s)
        if not statistics:
            raise ValueError(f"--save-statistics {path}: no network has two embeddings of the generated files")
        save_statistics(path, statistics, origins)
        return {network: gaussian.count for network, gaussian in statistics.items()}

    def _reference_statistics(self, network: str) -> GaussianStatistics:
        if self.config.reference_statistics is not None:
            return load_statistics(self.config.reference_statistics, network)
        groups = grouped_statistics(self._reference(network, "windows"), 1)
        if not groups:
            raise ValueError("no reference file has features")
        return groups[0]

    def _frechet(self, metric: Metric) -> Result:
        groups, reference = self._groups(metric.network), self._reference_statistics(metric.network)
        value, error = jackknife_frechet_distance(groups, reference)
        samples = sum(group.count for group in groups)
        details = {"embeddings": samples, "reference_embeddings": known_count(reference), "width": len(reference.mean)}
        return value, error, self._count(metric), {**details, "error_method": JACKKNIFE}

    def _count(self, metric: Metric) -> int:
        """Return the number of generated files that the network could embed."""
        return len(self.clips.generated) - sum(
            str(path) in self.extraction.excluded.get(metric.network, {}) for path in self.clips.generated.values()
        )

    def _frechet_inf(self, metric: Metric) -> Result:
        reference = self._reference_statistics(metric.network)
        with stored(self._generated(metric.network, "windows")) as (windows, lengths):
            value, fit = frechet_distance_at_infinity(windows, reference)
            details = {"embeddings": len(windows), "reference_embeddings": known_count(reference), "r2": fit}
            return value, None, len(lengths), {**details, "sizes": "25 from 500 to all embeddings", "seed": 0}

    def _kernel(self, metric: Metric) -> Result:
        with (
            stored(self._generated(metric.network, "windows")) as (generated, lengths),
            stored(self._reference(metric.network, "windows")) as (reference, _),
        ):
            details = {"embeddings": len(generated), "reference_embeddings": len(reference)}
            groups = np.repeat(np.arange(len(lengths)) % JACKKNIFE_GROUPS, lengths)
            chosen = _evenly(len(generated))
            generated, reference = generated[chosen], reference[_evenly(len(reference))]
        bandwidth = median_distance(generated)
        value, error = jackknife_kernel_distance(generated, reference, groups[chosen], bandwidth)
        details |= {"compared": [len(generated), len(reference)], "error_method": JACKKNIFE}
        details |= {"bandwidth": bandwidth, "bandwidth_method": "median distance of generated embeddings"}
        return value, error, len(lengths), details

    def _inception(self, metric: Metric) -> Result:
        with stored(logits[None] for logits in self._generated(metric.network, "logits")) as (rows, _):
            value, deviation = inception_score(rows)
            return (
                value,
                deviation,
                len(rows),
                {"splits": 10, "seed": 2020, "error_method": "deviation over the splits"},
            )

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
            text = self.extraction.caption_features(self.clips.captions[name])
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
        return value, error, len(hits), {"tolerance": TOLERANCE, "unit": "s", "error_method": BOOTSTRAP}

    def _aesthetics(self, metric: Metric) -> Result:
        scores = self._generated(metric.network, "scores")
        return _mean([float(score[AXES.index(metric.key)]) for score in scores], {"range": "1 to 10"})


def _mean(values: list[float], details: dict) -> Result:
    if not values:
        raise ValueError("no clip has the features that this metric needs")
    values = np.array(values)
    return float(values.mean()), bootstrap_error(values), len(values), {**details, "error_method": BOOTSTRAP}


def _evenly(count: int) -> np.ndarray:
    """Return the indices of at most `MOST_KERNEL_EMBEDDINGS` of `count` rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, MOST_KERNEL_EMBEDDINGS)).astype(int)


@contextmanager
def stored(parts: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """
    Keep the rows of many parts in a temporary file, so that memory does not grow with their number.

    Yields:
        float32 `[rows, D]`, and the number of rows of each part.

    Raises:
        ValueError: There are no parts.
    """
    lengths, width = [], 0
    with tempfile.TemporaryFile() as file:
        for part in parts:
            file.write(part.astype(np.float32).tobytes())
            lengths.append(len(part))
            width = part.shape[1]
        if not lengths:
            raise ValueError("no file has features")
        file.flush()
        yield np.memmap(file, np.float32, "r", shape=(sum(lengths), width)), lengths
