"""Features of files, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..atomic import replacing
from ..media import load_audio
from ..media.files import MediaError
from ..messages import describe
from .networks.base import Sound

# Raised when a change of the code changes features, so that old ones are not used.
CACHE_VERSION = 2


class FeatureCache:
    """
    Cache of features by the content of files, so that a file that is generated again gets new features.

    Args:
        folder: Folder of the cache. It is created.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, *key: object) -> Path:
        """Return the file for a key."""
        name = hashlib.sha256("\0".join(map(str, (CACHE_VERSION, *key))).encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.safetensors"

    def get(self, *key: object) -> dict[str, torch.Tensor] | None:
        """Return the features of a key; `None` if they are missing or damaged."""
        path = self.path(*key)
        try:
            return load_file(path) if path.is_file() else None
        except (SafetensorError, OSError):
            return None

    def put(self, features: dict[str, torch.Tensor], *key: object) -> None:
        """Store the features of a key."""
        path = self.path(*key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in features.items()}, temporary)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SoundReader:
    """
    Reader that treats all sounds of an evaluation alike.

    Args:
        audio_length_in_s: Longer sounds are cut to this; `None` reads them whole.
    """

    def __init__(self, audio_length_in_s: float | None):
        self.audio_length_in_s = audio_length_in_s

    @property
    def settings(self) -> str:
        """Settings that features depend on, part of the cache key."""
        return f"length={self.audio_length_in_s}"

    def read(self, path: Path) -> Sound:
        """
        Read a waveform `[channels, samples]` at the file's own rate, and return both.

        Raises:
            MediaError, OSError: The file cannot be read, is empty, or has samples that are NaN or infinite.
        """
        waveform, rate = load_audio(path, duration=self.audio_length_in_s)
        if not waveform.numel():
            raise MediaError(f"{path}: has no samples")
        if not torch.isfinite(waveform).all():
            raise MediaError(f"{path}: has samples that are NaN or infinite")
        return waveform, rate


Embed = Callable[[list[Sound]], list[dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class FeatureStore:
    """
    Features of one network, by file.

    Args:
        cache: Where the features are.
        identity: Name and weights of the network.
        reader: Reads the sounds.
        digest: Returns the SHA-256 of a file.
    """

    cache: FeatureCache
    identity: str
    reader: SoundReader
    digest: Callable[[Path], str]

    def get(self, path: Path) -> dict[str, torch.Tensor] | None:
        """Return the features of a file; `None` if there are none. `OSError` if the file cannot be read."""
        return self.cache.get(self.digest(path), self.identity, self.reader.settings)

    def compute(self, paths: Iterable[Path], embed: Embed, batch_size: int = 16) -> Iterator[tuple[Path, str | None]]:
        """
        Compute the features of all files that have none.

        Args:
            paths: The files.
            embed: Computes the features of a batch of sounds. It is only called if features are missing.
            batch_size: Sounds read and embedded at a time, which bounds memory.

        Yields:
            Each file, with `None` or the reason why it has no features.
        """
        waiting: list[tuple[Path, Sound]] = []
        for path in paths:
            try:
                known = self.get(path) is not None
                if not known:
                    waiting.append((path, self.reader.read(path)))
            except (MediaError, OSError) as error:
                yield path, describe(error)
                continue
            if known:
                yield path, None
            elif len(waiting) == batch_size:
                yield from self._compute(waiting, embed)
                waiting = []
        yield from self._compute(waiting, embed)

    def _compute(self, sounds: list[tuple[Path, Sound]], embed: Embed) -> Iterator[tuple[Path, str | None]]:
        if not sounds:
            return
        for (path, _), features in zip(sounds, embed([sound for _, sound in sounds]), strict=True):
            if all(torch.isfinite(tensor).all() for tensor in features.values()):
                self.cache.put(features, self.digest(path), self.identity, self.reader.settings)
                yield path, None
            else:
                yield path, f"{path}: its features are NaN or infinite"
