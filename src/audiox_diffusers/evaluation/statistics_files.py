"""Files with the mean and covariance of a set, which can stand for its sounds."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..atomic import replacing
from ..messages import first_line
from .statistics import GaussianStatistics

# Names of mean and covariance in files of other tools: plain, and those of stable-audio-metrics.
PLAIN_NAMES = (("mu", "cov"), ("mu_ref", "sigma_ref"))
# Files of other tools do not say how many embeddings they are of.
UNKNOWN_COUNT = 2**31


def save_statistics(path: Path, statistics: dict[str, GaussianStatistics]) -> None:
    """
    Write mean, covariance and count by network, under the names that fadtk uses (`<network>.mu`, `<network>.cov`).

    Networks with fewer than two embeddings, which have no covariance, are left out.
    """
    arrays = {}
    for network, gaussian in statistics.items():
        if gaussian.count > 1:
            arrays |= {
                f"{network}.mu": gaussian.mean,
                f"{network}.cov": gaussian.covariance,
                f"{network}.n": gaussian.count,
            }
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
                return _checked(count, arrays[mu].astype(np.float64), arrays[cov].astype(np.float64))
    raise ValueError(f"{path}: has no statistics of {network}")


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
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a file of statistics ({first_line(error)})") from None


def _checked(count: int, mean: np.ndarray, covariance: np.ndarray) -> GaussianStatistics:
    if not isinstance(count, int) or count < 2:
        raise ValueError(f"the count must be a whole number, 2 or more, got {count!r}")
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"mean {list(mean.shape)} and covariance {list(covariance.shape)} do not fit each other")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError("it holds NaN or infinite values")
    return GaussianStatistics(count, mean, covariance * (count - 1.0))
