"""Feature extraction for an evaluation, shared by all processes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..media import load_video
from .catalog import NETWORKS
from .clips import EvaluationSet
from .config import EvaluationConfig
from .features import FeatureCache, SoundReader, compute_features, file_digest
from .metrics import Metric
from .networks.base import Sound
from .networks.clap import Clap
from .networks.synchformer import Synchformer

FACTS = "facts"


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
    """

    def __init__(self, clips: EvaluationSet, config: EvaluationConfig, state: PartialState, progress: Callable):
        self.clips = clips
        self.config = config
        self.state = state
        self.progress = progress
        self.cache = FeatureCache(config.cache)
        self.reader = SoundReader(config.audio_length_in_s)
        self.excluded: dict[str, dict[str, str]] = {}
        self._digests: dict[Path, str] = {}

    def compute(self, network: str, metrics: list[Metric]) -> None:
        """Compute the features of one network for all files that its metrics need."""
        model = None
        if network == "synchformer":
            names = [name for name in self.clips.filmed if self.cache.get(*self.synchronization_key(name)) is None]
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
        """Compute the length, sampling rate, level and peak of every file."""
        paths = [*self.clips.generated.values(), *self.clips.reference.values()]
        self._compute(FACTS, [path for path in paths if self.features(path, FACTS) is None], _facts)

    def _compute_synchronization(self, model: Synchformer, names: list[str]) -> None:
        share = names[self.state.process_index :: self.state.num_processes]
        for done, name in enumerate(share, 1):
            self.progress("synchformer", done, len(share))
            try:
                self.cache.put({"logits": self._synchronization(model, name)}, *self.synchronization_key(name))
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

    def synchronization_key(self, name: str) -> tuple:
        """Return the cache key of a clip's logits, which depend on its sound and its video."""
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

    def gather_excluded(self) -> None:
        """Collect the excluded files of all processes."""
        if self.state.num_processes == 1:
            return
        everything: dict[str, dict[str, str]] = {}
        for excluded in gather_object([self.excluded]):
            for network, files in excluded.items():
                everything.setdefault(network, {}).update(files)
        self.excluded = everything

    def identity(self, network: str) -> str:
        """Return the name of a network and its weights, for cache keys and reports."""
        return FACTS if network == FACTS else f"{network} {NETWORKS[network].identity}"

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, which is read once."""
        if path not in self._digests:
            self._digests[path] = file_digest(path)
        return self._digests[path]

    def features(self, path: Path, network: str) -> dict[str, torch.Tensor] | None:
        """Return the cached features of a file; `None` if there are none."""
        try:
            return self.cache.get(self.digest(path), self.identity(network), self.reader.settings)
        except OSError:
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
        level = 10 * waveform.square().mean().clamp(min=1e-20).log10()
        peak = waveform.abs().max()
        facts.append({"facts": torch.tensor([waveform.shape[1] / rate, float(rate), level, peak])})
    return facts
