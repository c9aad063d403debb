"""Files with the mean and covariance of a set, which can stand for its sounds."""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..atomic import replacing
from ..messages import first_line
from .statistics import GaussianStatistics

# Names of mean and covariance in files of other tools: plain, and those of stable-audio-metrics.
PLAIN_NAMES = (("mu", "cov"), ("mu_ref", "sigma_ref"))
# Files of other tools do not say how many embeddings they are of.
UNKNOWN_COUNT = 2**31


@dataclass(frozen=True)
class Origin:
    """
    What statistics were computed with. Files of other tools do not say.

    Attributes:
        weights: Name of the network and its weights.
        audio_length_in_s: Length that clips were cut to; `None` for whole clips.
    """

    weights: str
    audio_length_in_s: float | None = None


def save_statistics(
    path: Path, statistics: Mapping[str, GaussianStatistics], origins: Mapping[str, Origin] | None = None
) -> None:
    """
    Write mean, covariance and count by network, under the names that fadtk uses (`<network>.mu`, `<network>.cov`), and
    beside them the count (`<network>.n`) and the origin (`<network>.origin`, JSON).

    Networks with fewer than two embeddings, which have no covariance, are left out.
    """
    arrays: dict[str, np.ndarray] = {}
    for network, gaussian in statistics.items():
        if gaussian.count > 1:
            arrays |= {
                f"{network}.mu": gaussian.mean,
                f"{network}.cov": gaussian.covariance,
                f"{network}.n": np.array(gaussian.count),
            }
            if origins is not None:
                arrays[f"{network}.origin"] = np.array(json.dumps(asdict(origins[network])))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_statistics(path: Path, network: str) -> GaussianStatistics:
    """
    Read the statistics of one network, as [`save_statistics`], fadtk (`<network>.mu`) or stable-audio-metrics
    (`mu_ref`, `sigma_ref`) write them.

    Raises:
        ValueError: The file is damaged, or has no statistics of the network.
    """
    with _reading(path) as arrays:
        for mu, cov in ((f"{network}.mu", f"{network}.cov"), *PLAIN_NAMES):
            if mu in arrays and cov in arrays:
                count = arrays[f"{network}.n"].item() if f"{network}.n" in arrays else UNKNOWN_COUNT
                return _checked(count, _numbers(arrays, mu), _numbers(arrays, cov))
        found = sorted(name.removesuffix(".mu") for name in arrays if name.endswith(".mu"))
    raise ValueError(f"{path}: has no statistics of {network}" + (f", only of {', '.join(found)}" if found else ""))


def load_origin(path: Path, network: str) -> Origin | None:
    """Read what the statistics of one network were computed with; `None` if the file does not say."""
    with _reading(path) as arrays:
        if f"{network}.origin" not in arrays:
            return None
        return Origin(**json.loads(arrays[f"{network}.origin"].item()))


def known_count(statistics: GaussianStatistics) -> int | None:
    """Return the number of embeddings; `None` for statistics from a file that does not have it."""
    return None if statistics.count == UNKNOWN_COUNT else statistics.count


def check_statistics(path: Path) -> None:
    """Raise `ValueError` unless a file can be read and has the statistics of any network."""
    with _reading(path) as arrays:
        if any(name.endswith((".mu", "mu_ref")) or name == "mu" for name in arrays):
            return
    raise ValueError(f"{path}: has no statistics of any network")


@contextmanager
def _reading(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open a file of arrays, and raise what is wrong with it as `ValueError`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, EOFError, ValueError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = first_line(error)
        # NumPy's advice is to read the file unsafely.
        reason = "it holds pickled objects, or is no .npz file" if "pickle" in reason else reason
        raise ValueError(f"{path}: not a file of statistics ({reason})") from None


def _numbers(arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    array = arrays[name]
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold real numbers, got {array.dtype}")
    return array.astype(np.float64)


def _checked(count: int, mean: np.ndarray, covariance: np.ndarray) -> GaussianStatistics:
    if not isinstance(count, int) or count < 2:
        raise ValueError(f"the count must be a whole number, 2 or more, got {count!r}")
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"mean {list(mean.shape)} and covariance {list(covariance.shape)} do not fit each other")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError("it holds NaN or infinite values")
    scale = np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > 1e-3 * scale or covariance.diagonal().min(initial=0) < 0:
        raise ValueError("its covariance is not symmetric, or has a negative variance")
    return GaussianStatistics(count, mean, (covariance + covariance.T) * (0.5 * (count - 1.0)))
