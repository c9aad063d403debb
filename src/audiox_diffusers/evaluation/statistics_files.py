"""Files with the mean and covariance of a set, which can stand for its sounds."""

from pathlib import Path

import numpy as np

from .statistics import GaussianStatistics


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
