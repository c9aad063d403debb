"""Runs metrics over a set of files: features first, in as many processes as there are, then the figures."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..media import load_video
from .catalog import NETWORKS
from .clips import EvaluationSet
from .features import FeatureCache, SoundReader, compute_features, file_digest
from .metrics import METRICS, Metric, choose
from .networks.aesthetics import AXES
from .networks.base import Sound
from .networks.clap import Clap
from .networks.synchformer import Synchformer
from .report import EvaluationReport, Figure
from .statistics import (
    GaussianStatistics,
    bootstrap_error,
    cosine_similarity,
    frechet_distance_at_infinity,
    inception_score,
    jackknife_frechet_distance,
    kernel_distance,
    kl_divergence,
    merged,
    synchronization_error,
)

logger = logging.getLogger(__name__)

JACKKNIFE_GROUPS = 10
# Embeddings that quadratic metrics compare; of more, evenly spaced ones.
MOST_KERNEL_EMBEDDINGS = 10_000
SILENCE_DB = -50.0
# Just below the largest sample of 16-bit files.
CLIPPING = 0.999
FACTS = "facts"


@dataclass(frozen=True)
class EvaluationConfig:
    """
    How to evaluate.

    Attributes:
        metrics: Names in the catalog; `None` for all that the files allow.
        audio_length_in_s: Sounds are cut to this before every network; `None` for whole files.
        cache: Folder of features.
        weights: Folder with the networks' files; `None` to download them.
        reference_statistics: File of mean and covariance that stands for a reference folder.
        batch_size: Sounds embedded at a time.
        device: Where networks run.
    """

    cache: Path
    metrics: tuple[str, ...] | None = None
    audio_length_in_s: float | None = None
    weights: Path | None = None
    reference_statistics: Path | None = None
    batch_size: int = 16
    device: torch.device = torch.device("cpu")


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
) -> EvaluationReport | None:
    """
    Compute metrics. Features are kept in `config.cache`, so an interrupted run resumes; with `accelerate launch`, each
    process computes its share of them.

    Args:
        clips: The files.
        config: How to evaluate.
        progress: Called with a network's name, files done and files in all.
        statistics: File for mean and covariance of the generated set, so that it can serve as a reference later.

    Returns:
        The report; `None` in all processes but the first.

    Raises:
        ValueError: A metric that was asked for cannot run.
    """
    chosen = choose_metrics(clips, config)
    # Shares take different times, so waiting for the slowest process has no limit.
    state = PartialState(cpu=True, timeout=timedelta(days=365))
    evaluation = _Evaluation(clips, config, state, progress or (lambda *_: None))
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(METRICS[metric].network for metric in chosen):
        try:
            evaluation.compute(name, [METRICS[metric] for metric in chosen if METRICS[metric].network == name])
        except (FileNotFoundError, ValueError) as error:
            affected = [metric for metric in chosen if METRICS[metric].network == name]
            if config.metrics is not None:
                raise ValueError(f"--metrics {affected[0]}: {error}") from None
            skipped |= dict.fromkeys(affected, str(error))
    evaluation.compute_facts()
    state.wait_for_everyone()
    excluded = evaluation.gather_excluded()
    if not state.is_main_process:
        return None

    figures = []
    for name in chosen:
        if name not in skipped:
            try:
                figures.append(evaluation.figure(name))
            except ValueError as error:
                skipped[name] = str(error)
    if statistics is not None:
        evaluation.save_statistics(statistics)
    return EvaluationReport(evaluation.settings(), figures, skipped, excluded, evaluation.warnings(chosen))


class _Evaluation:
    def __init__(self, clips: EvaluationSet, config: EvaluationConfig, state: PartialState, progress: Callable):
        self.clips = clips
        self.config = config
        self.state = state
        self.progress = progress
        self.cache = FeatureCache(config.cache)
        self.reader = SoundReader(config.audio_length_in_s)
        self.excluded: dict[str, dict[str, str]] = {}
        self._digests: dict[Path, str] = {}

    # Features

    def compute(self, network: str, metrics: list[Metric]) -> None:
        """Features of one network for all files that its metrics need."""
        model = None
        if network == "synchformer":
            names = [name for name in self.clips.filmed if self.cache.get(*self._synchronization_key(name)) is None]
            if names:
                model = NETWORKS[network].load(self.config.weights, self.config.device)
                self._compute_synchronization(model, names)
            return
        missing = [path for path in self._wanted(metrics) if self.features(path, network) is None]
        captions = self._missing_captions() if any(metric.kind == "clap" for metric in metrics) else []
        if missing or captions:
            model = NETWORKS[network].load(self.config.weights, self.config.device)
            self._compute(network, missing, model.embed)
        if captions:
            self._compute_captions(model, captions)

    def _wanted(self, metrics: list[Metric]) -> list[Path]:
        paths = list(self.clips.generated.values())
        if any("reference" in metric.needs or "pairs" in metric.needs for metric in metrics):
            paths += self.clips.reference.values()
        return paths

    def _compute(self, network: str, paths: Sequence[Path], embed: Callable) -> None:
        share = paths[self.state.process_index :: self.state.num_processes]
        outcomes = compute_features(
            share, embed, self.reader, self.cache, self.identity(network), self.config.batch_size
        )
        for done, (path, reason) in enumerate(outcomes, 1):
            self.progress(network, done, len(share))
            if reason is not None:
                self.excluded.setdefault(network, {})[str(path)] = reason

    def compute_facts(self) -> None:
        """Length, rate and level of every file."""
        paths = [*self.clips.generated.values(), *self.clips.reference.values()]
        self._compute(FACTS, [path for path in paths if self.features(path, FACTS) is None], _facts)

    def _compute_synchronization(self, model: Synchformer, names: list[str]) -> None:
        share = names[self.state.process_index :: self.state.num_processes]
        for done, name in enumerate(share, 1):
            self.progress("synchformer", done, len(share))
            try:
                self.cache.put({"logits": self._synchronization(model, name)}, *self._synchronization_key(name))
            except (ValueError, OSError) as error:
                self.excluded.setdefault("synchformer", {})[name] = str(error)

    @torch.inference_mode()
    def _synchronization(self, model: Synchformer, name: str) -> torch.Tensor:
        device = self.config.device
        waveform, rate = self.reader.read(self.clips.generated[name])
        frames = load_video(
            self.clips.videos[name],
            fps=model.video_fps,
            duration=self.config.audio_length_in_s,
            size=(224, 224),
            fit="crop",
        )
        audio = model.audio_tokens(waveform.to(device), rate)
        return model(model.visual_tokens(frames.to(device) * 2 - 1), audio).cpu()

    def _synchronization_key(self, name: str) -> tuple:
        files = self.digest(self.clips.generated[name]), self.digest(self.clips.videos[name])
        return *files, self.identity("synchformer"), self.reader.settings

    def _missing_captions(self) -> list[str]:
        texts = {self.clips.captions[name] for name in self.clips.captioned}
        return sorted(text for text in texts if self.cache.get(text, self.identity("clap"), "text") is None)

    def _compute_captions(self, model: Clap, texts: list[str]) -> None:
        if self.state.is_main_process:
            for start in range(0, len(texts), self.config.batch_size):
                batch = texts[start : start + self.config.batch_size]
                for text, embedding in zip(batch, model.embed_texts(batch), strict=True):
                    self.cache.put({"text": embedding}, text, self.identity("clap"), "text")

    def gather_excluded(self) -> dict[str, dict[str, str]]:
        """What all processes excluded."""
        everything: dict[str, dict[str, str]] = {}
        for excluded in gather_object([self.excluded]):
            for network, files in excluded.items():
                everything.setdefault(network, {}).update(files)
        self.excluded = everything
        return everything

    # Reading them

    def identity(self, network: str) -> str:
        """Network and weights, as part of keys and of reports."""
        return FACTS if network == FACTS else f"{network} {NETWORKS[network].identity}"

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, read once."""
        if path not in self._digests:
            self._digests[path] = file_digest(path)
        return self._digests[path]

    def features(self, path: Path, network: str) -> dict[str, torch.Tensor] | None:
        """Cached features of a file; `None` if there are none."""
        try:
            return self.cache.get(self.digest(path), self.identity(network), self.reader.settings)
        except OSError:
            return None

    def each(self, paths: Sequence[Path], network: str, name: str) -> Iterator[np.ndarray]:
        """One of the features of each file that has them."""
        for path in paths:
            features = self.features(path, network)
            if features is not None:
                yield features[name].numpy()

    # Figures

    def figure(self, name: str) -> Figure:
        """One metric from cached features."""
        metric = METRICS[name]
        value, error, count, details = getattr(self, f"_{metric.kind.replace('-', '_')}")(metric)
        return Figure(name, metric.key, value, error, metric.better, count, self.identity(metric.network), details)

    def _groups(self, network: str) -> tuple[list[GaussianStatistics], int]:
        groups, clips = [], 0
        for clips, windows in enumerate(self.each(list(self.clips.generated.values()), network, "windows"), 1):
            if len(groups) < JACKKNIFE_GROUPS:
                groups.append(GaussianStatistics.empty(windows.shape[1]))
            groups[clips % len(groups)].update(windows)
        if not clips:
            raise ValueError("no generated file has features")
        return groups, clips

    def save_statistics(self, path: Path) -> None:
        """Write the statistics of the generated set for every network that has embeddings of it."""
        statistics = {}
        for network in {metric.network for metric in METRICS.values() if metric.kind == "frechet"}:
            try:
                groups, _ = self._groups(network)
            except ValueError:
                continue
            statistics[network] = merged(groups)
        save_statistics(path, statistics)

    def reference_statistics(self, network: str) -> GaussianStatistics:
        """Mean and covariance of the reference set, from its files or from a file of statistics."""
        if self.config.reference_statistics is not None:
            return load_statistics(self.config.reference_statistics, network)
        statistics = None
        for windows in self.each(list(self.clips.reference.values()), network, "windows"):
            statistics = statistics or GaussianStatistics.empty(windows.shape[1])
            statistics.update(windows)
        if statistics is None:
            raise ValueError("no reference file has features")
        return statistics

    def _frechet(self, metric: Metric) -> tuple:
        groups, clips = self._groups(metric.network)
        reference = self.reference_statistics(metric.network)
        value, error = jackknife_frechet_distance(groups, reference)
        samples = sum(group.count for group in groups)
        details = {"embeddings": samples, "reference_embeddings": reference.count, "width": len(reference.mean)}
        return value, error, clips, details

    def _windows(self, paths: Sequence[Path], network: str) -> tuple[np.ndarray, int]:
        windows = list(self.each(paths, network, "windows"))
        if not windows:
            raise ValueError("no file has features")
        return np.concatenate(windows), len(windows)

    def _frechet_inf(self, metric: Metric) -> tuple:
        windows, clips = self._windows(list(self.clips.generated.values()), metric.network)
        value, fit = frechet_distance_at_infinity(windows, self.reference_statistics(metric.network))
        return value, None, clips, {"r2": fit, "embeddings": len(windows)}

    def _kernel(self, metric: Metric) -> tuple:
        if not self.clips.reference:
            raise ValueError("needs the reference files, not their statistics")
        generated, clips = self._windows(list(self.clips.generated.values()), metric.network)
        reference, _ = self._windows(list(self.clips.reference.values()), metric.network)
        details = {"embeddings": len(generated), "reference_embeddings": len(reference), "bandwidth": "generated"}
        return kernel_distance(_evenly(generated), _evenly(reference)), None, clips, details

    def _inception(self, metric: Metric) -> tuple:
        with tempfile.TemporaryFile() as file:
            count = 0
            for logits in self.each(list(self.clips.generated.values()), metric.network, "logits"):
                file.write(logits.astype(np.float32).tobytes())
                count += 1
            if not count:
                raise ValueError("no generated file has features")
            file.flush()
            rows = np.memmap(file, np.float32, "r", shape=(count, file.tell() // 4 // count))
            value, deviation = inception_score(rows)
        return value, deviation, count, {"splits": 10, "seed": 2020}

    def _kl(self, metric: Metric) -> tuple:
        values = []
        for name in self.clips.pairs:
            pair = [
                self.features(files[name], metric.network) for files in (self.clips.generated, self.clips.reference)
            ]
            if None not in pair:
                generated, reference = (features["logits"][None].numpy() for features in pair)
                values.append(kl_divergence(generated, reference)[0])
        return _mean(values, {"direction": "KL(reference || generated)"})

    def _clap(self, metric: Metric) -> tuple:
        values = []
        for name in self.clips.captioned:
            features = self.features(self.clips.generated[name], metric.network)
            text = self.cache.get(self.clips.captions[name], self.identity(metric.network), "text")
            if features is not None and text is not None:
                values.append(cosine_similarity(features["windows"].numpy(), text["text"][None].numpy())[0])
        return _mean(values, {})

    def _desync(self, metric: Metric) -> tuple:
        cached = [self.cache.get(*self._synchronization_key(name)) for name in self.clips.filmed]
        logits = [features["logits"].numpy() for features in cached if features is not None]
        values = [] if not logits else list(synchronization_error(np.stack(logits), Synchformer.offsets))
        return _mean(values, {"unit": "s"})

    def _aesthetics(self, metric: Metric) -> tuple:
        scores = self.each(list(self.clips.generated.values()), metric.network, "scores")
        return _mean([float(score[AXES.index(metric.key)]) for score in scores], {"range": "1 to 10"})

    # What they depend on

    def settings(self) -> dict:
        """What every figure depends on."""
        return {
            "generated": len(self.clips.generated),
            "reference": len(self.clips.reference),
            "pairs": len(self.clips.pairs),
            "captioned": len(self.clips.captioned),
            "videos": len(self.clips.filmed),
            "reference_statistics": str(self.config.reference_statistics or "") or None,
            "audio_length_in_s": self.config.audio_length_in_s,
            "channels": "mean",
            "levels": "as they are, minus the mean",
            "sampling_rates": sorted({int(fact[1]) for fact in self._facts_of(self.clips.generated)}),
            "reference_sampling_rates": sorted({int(fact[1]) for fact in self._facts_of(self.clips.reference)}),
            "versions": {name: version(name) for name in ("audiox-diffusers", "torch", "torchaudio", "transformers")},
        }

    def _facts_of(self, files: dict[str, Path]) -> list[np.ndarray]:
        return list(self.each(list(files.values()), FACTS, "facts"))

    def warnings(self, chosen: list[str]) -> list[str]:
        """What makes the figures mean less than they seem to."""
        warnings = []
        for argument, files in (("generated", self.clips.generated), ("reference", self.clips.reference)):
            facts = np.array(self._facts_of(files))
            if not len(facts):
                continue
            silent, clipped = int((facts[:, 2] < SILENCE_DB).sum()), int((facts[:, 3] > CLIPPING).sum())
            if silent:
                warnings.append(f"{silent} of {len(facts)} {argument} files are silent (below {SILENCE_DB:g} dBFS)")
            if clipped:
                warnings.append(f"{clipped} of {len(facts)} {argument} files clip")
            if facts[:, 0].max() > 1.02 * facts[:, 0].min() and self.config.audio_length_in_s is None:
                shortest, longest = facts[:, 0].min(), facts[:, 0].max()
                warnings.append(f"{argument} files last {shortest:.2f} to {longest:.2f} s; set one length for all")
        rates = [
            {int(fact[1]) for fact in self._facts_of(files)} for files in (self.clips.generated, self.clips.reference)
        ]
        if all(rates) and rates[0] != rates[1]:
            warnings.append(f"sampling rates differ: generated {sorted(rates[0])}, reference {sorted(rates[1])} Hz")
        if any(
            path.suffix.lower() in (".mp3", ".m4a", ".aac", ".ogg", ".opus") for path in self.clips.reference.values()
        ):
            warnings.append("references are compressed: their codec's low-pass counts as part of the reference")
        if self.clips.reference and 0 < len(self.clips.pairs) < len(self.clips.generated):
            unmatched = len(self.clips.generated) - len(self.clips.pairs)
            warnings.append(f"{unmatched} generated files have no reference of the same name")
        widths = {"vggish": 128, "cnn14-16k": 2048, "cnn14-32k": 2048, "passt": 768, "clap": 512}
        for name in chosen:
            metric = METRICS[name]
            if metric.kind == "frechet" and len(self.clips.generated) <= widths[metric.network]:
                clips = len(self.clips.generated)
                warnings.append(f"{name} of {clips} clips in {widths[metric.network]} dimensions is strongly biased")
        return warnings


def save_statistics(path: Path, statistics: dict[str, GaussianStatistics]) -> None:
    """Write mean, covariance and count by network, under the names that fadtk uses (`<network>.mu`, `<network>.cov`)."""
    arrays = {}
    for network, gaussian in statistics.items():
        arrays |= {
            f"{network}.mu": gaussian.mean,
            f"{network}.cov": gaussian.covariance,
            f"{network}.n": gaussian.count,
        }
    np.savez_compressed(path, **arrays)


def load_statistics(path: Path, network: str) -> GaussianStatistics:
    """
    Statistics of one network, as [`save_statistics`], fadtk (`<network>.mu`) or stable-audio-metrics (`mu_ref`,
    `sigma_ref`) write them; `ValueError` if the file has none.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for mu, cov in ((f"{network}.mu", f"{network}.cov"), ("mu", "cov"), ("mu_ref", "sigma_ref")):
                if mu in arrays and cov in arrays:
                    count = int(arrays[f"{network}.n"]) if f"{network}.n" in arrays else 2**31
                    return GaussianStatistics(count, arrays[mu].astype(np.float64), arrays[cov] * (count - 1.0))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a file of statistics ({error})") from None
    raise ValueError(f"{path}: has no statistics of {network}")


def _facts(sounds: list[Sound]) -> list[dict[str, torch.Tensor]]:
    """Seconds, rate in Hz, level in dBFS and peak."""
    facts = []
    for waveform, rate in sounds:
        level = 10 * waveform.square().mean().clamp(min=1e-20).log10()
        peak = waveform.abs().max()
        facts.append({"facts": torch.tensor([waveform.shape[1] / rate, float(rate), level, peak])})
    return facts


def _mean(values: list[float], details: dict) -> tuple:
    if not values:
        raise ValueError("no clip has what it needs")
    values = np.array(values)
    return float(values.mean()), bootstrap_error(values), len(values), details


def _evenly(embeddings: np.ndarray) -> np.ndarray:
    if len(embeddings) <= MOST_KERNEL_EMBEDDINGS:
        return embeddings
    return embeddings[np.linspace(0, len(embeddings) - 1, MOST_KERNEL_EMBEDDINGS).astype(int)]
