"""Feature extraction for an evaluation, shared by all processes."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from accelerate import PartialState
from accelerate.utils import gather_object

from ..media import load_video
from ..messages import describe
from .catalog import NETWORKS
from .clips import EvaluationSet
from .config import EvaluationConfig
from .features import FeatureCache, FeatureStore, SoundReader, file_digest
from .metrics import Metric
from .networks.base import Sound
from .networks.clap import Clap
from .networks.synchformer import Synchformer
from .report import FACTS


class Extraction:
    """
    Features of the files of an evaluation: computed once, kept in a cache, and read from there.

    Args:
        clips: The files.
        config: How to evaluate.
        state: The processes. Each one computes its share.
        progress: Called with the name of a network, the number of files done and the number of files.

    Attributes:
        excluded: Reasons why files have no features, by network and file.
        unavailable: Reasons why networks cannot run, by name.
    """

    def __init__(self, clips: EvaluationSet, config: EvaluationConfig, state: PartialState, progress: Callable):
        self.clips = clips
        self.config = config
        self.state = state
        self.progress = progress
        self.cache = FeatureCache(config.cache)
        self.reader = SoundReader(config.audio_length_in_s)
        self.excluded: dict[str, dict[str, str]] = {}
        self.unavailable: dict[str, str] = {}
        self._digests: dict[Path, str] = {}

    def compute(self, network: str, metrics: list[Metric]) -> None:
        """
        Compute this process's share of the features of one network. It is loaded when the first file needs it.

        Raises:
            FileNotFoundError, ValueError: The network cannot be loaded.
        """

        @cache
        def model() -> nn.Module:
            return NETWORKS[network].load(self.config.weights, self.config.device)

        if network == "synchformer":
            self._compute_synchronization(model)
            return
        paths = list(self.clips.generated.values())
        if any(need in ("reference", "reference_files", "pairs") for metric in metrics for need in metric.needs):
            paths += self.clips.reference.values()
        self._compute(network, paths, lambda sounds: model().embed(sounds))
        if any(metric.kind == "clap" for metric in metrics):
            self._compute_captions(model)

    def _compute(self, network: str, paths: Sequence[Path], embed: Callable) -> None:
        share = self._share(paths)
        self.progress(network, 0, len(share))
        outcomes = self._store(network).compute(share, embed, self.config.batch_size)
        for done, (path, reason) in enumerate(outcomes, 1):
            self.progress(network, done, len(share))
            if reason is not None:
                self.excluded.setdefault(network, {})[str(path)] = reason

    def _share(self, items: Sequence) -> Sequence:
        """Return this process's share, which must not depend on what other processes have computed already."""
        return items[self.state.process_index :: self.state.num_processes]

    def compute_facts(self) -> None:
        """Compute the length, sampling rate, level and peak of every file."""
        self._compute(FACTS, [*self.clips.generated.values(), *self.clips.reference.values()], _facts)

    def _compute_synchronization(self, model: Callable[[], Synchformer]) -> None:
        share = self._share(self.clips.filmed)
        self.progress("synchformer", 0, len(share))
        for done, name in enumerate(share, 1):
            try:
                key = self.synchronization_key(name)
                inputs = None if self.cache.get(*key) is not None else self._read_film(name)
            except (ValueError, OSError) as error:
                self._exclude_film(name, error)
            else:
                if inputs is not None:
                    self._synchronize(model(), name, *inputs)
            self.progress("synchformer", done, len(share))

    def _read_film(self, name: str) -> tuple[Sound, torch.Tensor]:
        frames = load_video(
            self.clips.videos[name],
            fps=Synchformer.video_fps,
            duration=self.config.audio_length_in_s,
            size=(224, 224),
            fit="crop",
        )
        return self.reader.read(self.clips.generated[name]), frames

    @torch.inference_mode()
    def _synchronize(self, model: Synchformer, name: str, sound: Sound, frames: torch.Tensor) -> None:
        device = self.config.device
        waveform, rate = sound
        try:
            audio = model.audio_tokens(waveform.to(device), rate)
            logits = model(model.visual_tokens(frames.to(device) * 2 - 1), audio).cpu()
        except ValueError as error:
            self._exclude_film(name, error)
        else:
            self.cache.put({"logits": logits}, *self.synchronization_key(name))

    def _exclude_film(self, name: str, error: Exception) -> None:
        self.excluded.setdefault("synchformer", {})[name] = f"{name}: {describe(error)}"

    def synchronization_key(self, name: str) -> tuple:
        """Return the cache key of a clip's logits, which depend on its sound and its video."""
        files = self.digest(self.clips.generated[name]), self.digest(self.clips.videos[name])
        return *files, self.identity("synchformer"), self.reader.settings

    def _compute_captions(self, model: Callable[[], Clap]) -> None:
        texts = sorted({self.clips.captions[name] for name in self.clips.captioned})
        share = [text for text in self._share(texts) if self.caption_features(text) is None]
        for start in range(0, len(share), self.config.batch_size):
            batch = share[start : start + self.config.batch_size]
            for text, embedding in zip(batch, model().embed_texts(batch), strict=True):
                self.cache.put({"text": embedding}, text, self.identity("clap"), "text")

    def caption_features(self, text: str) -> dict[str, torch.Tensor] | None:
        """Return the cached features of a caption; `None` if there are none."""
        return self.cache.get(text, self.identity("clap"), "text")

    def gather(self) -> None:
        """Collect the excluded files and unavailable networks of all processes, once all of them are done."""
        if self.state.num_processes == 1:
            return
        for excluded, unavailable in gather_object([(self.excluded, self.unavailable)]):
            for network, files in excluded.items():
                self.excluded.setdefault(network, {}).update(files)
            self.unavailable |= unavailable

    def identity(self, network: str) -> str:
        """Return the name of a network and its weights, for cache keys and reports."""
        return FACTS if network == FACTS else f"{network} {NETWORKS[network].identity(self.config.weights)}"

    def _store(self, network: str) -> FeatureStore:
        return FeatureStore(self.cache, self.identity(network), self.reader, self.digest)

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, which is read once."""
        if path not in self._digests:
            self._digests[path] = file_digest(path)
        return self._digests[path]

    def features(self, path: Path, network: str) -> dict[str, torch.Tensor] | None:
        """Return the cached features of a file; `None` if there are none, which `excluded` explains."""
        try:
            features = self._store(network).get(path)
        except OSError as error:
            reason = describe(error)
        else:
            if features is not None:
                return features
            reason = f"{path}: changed while it was measured"
        self.excluded.setdefault(network, {}).setdefault(str(path), reason)
        return None

    def each(self, paths: Sequence[Path], network: str, name: str) -> Iterator[np.ndarray]:
        """Yield one feature of each file that has it."""
        for path in paths:
            features = self.features(path, network)
            if features is not None:
                yield features[name].numpy()


def _facts(sounds: list[Sound]) -> list[dict[str, torch.Tensor]]:
    """Return seconds, sampling rate in Hz, level in dBFS and peak of each sound."""
    facts = []
    for waveform, rate in sounds:
        level = 10 * waveform.double().square().mean().clamp(min=1e-20).log10()
        peak = waveform.abs().max()
        facts.append({"facts": torch.tensor([waveform.shape[1] / rate, float(rate), level, peak])})
    return facts
