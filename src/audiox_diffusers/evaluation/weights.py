"""Weights of the networks: download, check and read them, without running code."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import constants

from ..messages import first_line

# What checkpoints may hold besides tensors: the 16 kHz CNN14 has NumPy numbers beside its weights.
_SAFE_GLOBALS = [
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.ndarray,
    np.dtype,
    np.dtypes.Int64DType,
    np.dtypes.Float64DType,
]


@dataclass(frozen=True)
class Weights:
    """
    A checkpoint file to download.

    Attributes:
        url: Address of the file.
        digest: `"sha256:..."` or `"md5:..."` of the whole file.
        licence: Licence of the weights.
        megabytes: Size of the file.
    """

    url: str
    digest: str
    licence: str
    megabytes: int

    @property
    def file_name(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[1]

    def find(self, folder: Path | None = None) -> Path:
        """
        Return the path of the file in `folder`, or in the Hugging Face cache, where it is downloaded once.

        Raises:
            FileNotFoundError: The file is missing and cannot be downloaded.
            ValueError: The file does not match its digest.
        """
        if folder is not None:
            path = folder / self.file_name
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; download it from {self.url}")
            self._check(path)
            return path
        path = Path(constants.HF_HOME) / "audiox-evaluate" / self.file_name
        if not path.is_file():
            self._download(path)
        return path

    def _download(self, path: Path) -> None:
        if constants.is_offline_mode():
            raise FileNotFoundError(f"{self.file_name} is not in the cache and HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            torch.hub.download_url_to_file(self.url, str(partial))
            self._check(partial)
            partial.replace(path)
        except OSError as error:
            raise FileNotFoundError(f"{self.file_name} cannot be downloaded from {self.url}: {error}") from None
        finally:
            partial.unlink(missing_ok=True)

    def _check(self, path: Path) -> None:
        algorithm, expected = self.digest.split(":")
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, algorithm).hexdigest()
        if actual != expected:
            raise ValueError(f"{path.name} is damaged or another file: its {algorithm} is {actual}, not {expected}")


def read_checkpoint(path: Path) -> dict:
    """Read tensors and plain values from a checkpoint; raise `ValueError` if it holds anything else, such as code."""
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, ImportError) as error:
        raise ValueError(f"{path.name}: not a checkpoint ({first_line(error)})") from None
    except Exception as error:  # pickle.UnpicklingError and what a damaged archive raises
        raise ValueError(f"{path.name}: damaged, or holds code ({type(error).__name__})") from None
