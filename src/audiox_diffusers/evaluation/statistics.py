"""Formulas of the metrics, in float64, on the embeddings and logits of any network."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Added to the median distance of the kernel, as in KAD's reference implementation.
KERNEL_EPSILON = 1e-8
# Bounds the memory of statistics that are updated in pieces.
ROWS_AT_A_TIME = 4096


@dataclass
class GaussianStatistics:
    """
    Mean and covariance of embeddings, updated batch by batch with memory that does not grow (Chan et al., 1979).

    Attributes:
        count: Number of embeddings seen.
        mean: float64 `[D]`.
        scatter: Sum of the outer products of deviations from the mean, float64 `[D, D]`.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> "GaussianStatistics":
        """Return empty statistics of embeddings of width `dim`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "GaussianStatistics":
        """Return the statistics of embeddings `[N, D]`."""
        statistics = cls.empty(embeddings.shape[1])
        statistics.update(embeddings)
        return statistics

    def update(self, embeddings: np.ndarray) -> None:
        """Add embeddings `[N, D]`."""
        embeddings = np.asarray(embeddings, dtype=np.float64)
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.mean):
            raise ValueError(f"`embeddings` must have the shape [N, {len(self.mean)}], got {list(embeddings.shape)}.")
        if not len(embeddings):
            return
        if not np.isfinite(embeddings).all():
            raise ValueError("`embeddings` has NaN or infinite values.")
        mean = embeddings.mean(axis=0)
        deviations = embeddings - mean
        self.merge(GaussianStatistics(len(embeddings), mean, deviations.T @ deviations))

    def merge(self, other: "GaussianStatistics") -> None:
        """Add the statistics of other embeddings, such as those of another process."""
        if not other.count:
            return
        count = self.count + other.count
        delta = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count)
        self.mean = self.mean + delta * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance `[D, D]` (divisor `count - 1`); `ValueError` for fewer than two embeddings."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 embeddings, got {self.count}.")
        return self.scatter / (self.count - 1)


def grouped_statistics(
    parts: Iterable[np.ndarray], num_groups: int, block_size: int = 256
) -> list[GaussianStatistics]:
    """
    Return the statistics of embeddings in groups. Each group gets every `num_groups`-th part.

    Args:
        parts: Embeddings of each clip, `[windows, D]`.
        num_groups: Number of groups. Groups without a part are left out.
        block_size: Embeddings added to a group at a time, because adding single ones is slow for large `D`.
    """
    groups: list[GaussianStatistics] = []
    waiting: list[list[np.ndarray]] = []
    for number, part in enumerate(parts):
        if number < num_groups:
            groups.append(GaussianStatistics.empty(part.shape[1]))
            waiting.append([])
        group = number % num_groups
        waiting[group].append(part)
        if sum(map(len, waiting[group])) >= block_size:
            groups[group].update(np.concatenate(waiting[group]))
            waiting[group] = []
    for group, rest in zip(groups, waiting, strict=True):
        if rest:
            group.update(np.concatenate(rest))
    return groups


def merged(parts: Sequence[GaussianStatistics]) -> GaussianStatistics:
    """Return the statistics of several sets together."""
    whole = GaussianStatistics.empty(len(parts[0].mean))
    for part in parts:
        whole.merge(part)
    return whole


def covariance_factor(covariance: np.ndarray) -> np.ndarray:
    """Return a factor `F` `[D, rank]` of a covariance `F Fᵀ`."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values.max()
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(
    generated: GaussianStatistics, reference: GaussianStatistics, reference_factor: np.ndarray | None = None
) -> float:
    """
    Fréchet distance of two Gaussians (Heusel et al., arXiv 1706.08500, equation 6; for audio arXiv 1812.08466):
    `|m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½)`.

    The trace of the root comes from the eigenvalues of the symmetric `Fᵀ C1 F` with `C2 = F Fᵀ`, clamped at 0. Singular
    covariances (fewer embeddings than dimensions) need no correction, because `F` leaves out what is rounding error.

    Args:
        generated, reference: Statistics of the two sets.
        reference_factor: [`covariance_factor`] of the reference, to compute it once for several distances.

    Raises:
        ValueError: The widths differ, or a set has fewer than two embeddings.
    """
    if len(generated.mean) != len(reference.mean):
        raise ValueError(
            f"The embeddings must have the same width, got {len(generated.mean)} and {len(reference.mean)}."
        )
    covariance, other = generated.covariance, reference.covariance
    factor = covariance_factor(other) if reference_factor is None else reference_factor
    eigenvalues = np.linalg.eigvalsh(factor.T @ covariance @ factor)
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    difference = generated.mean - reference.mean
    return float(difference @ difference + np.trace(covariance) + np.trace(other) - 2 * trace_of_root)


def jackknife_error(without: Sequence[float]) -> float:
    """Return the standard error by the jackknife, from the values without each of the groups."""
    values = np.asarray(without)
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def jackknife_frechet_distance(
    groups: Sequence[GaussianStatistics], reference: GaussianStatistics
) -> tuple[float, float | None]:
    """
    Fréchet distance of several groups of clips together, and its standard error by the jackknife over the groups.

    Returns:
        The distance, and its standard error; `None` for a single group, or if the others have a single embedding.
    """

    factor = covariance_factor(reference.covariance)

    def distance(parts: Sequence[GaussianStatistics]) -> float:
        return frechet_distance(merged(parts), reference, factor)

    value = distance(groups)
    rests = [[*groups[:number], *groups[number + 1 :]] for number in range(len(groups))]
    if min(sum(group.count for group in rest) for rest in rests) < 2:
        return value, None
    return value, jackknife_error([distance(rest) for rest in rests])


def bootstrap_error(values: np.ndarray, num_resamples: int = 1000, seed: int = 0) -> float:
    """Return the standard error of the mean of per-clip values `[N]`, by the bootstrap."""
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(num_resamples)]
    return float(np.std(means))


def bootstrap_ratio(
    numerators: np.ndarray, denominators: np.ndarray, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the ratio of two sums of per-clip values `[N]`, and its standard error by the bootstrap over clips."""
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(num_resamples):
        draw = rng.integers(len(numerators), size=len(numerators))
        ratios.append(numerators[draw].sum() / max(denominators[draw].sum(), 1e-9))
    return float(numerators.sum() / denominators.sum()), float(np.std(ratios))


def frechet_distance_at_infinity(
    generated: np.ndarray, reference: GaussianStatistics, num_points: int = 25, smallest: int = 500, seed: int = 0
) -> tuple[float, float]:
    """
    Fréchet distance extrapolated to infinitely many embeddings (FAD-inf, arXiv 2311.01616): a straight line in `1/n`
    through the distances of subsets, at 0. Subsets are drawn without replacement.

    Args:
        generated: `[N, D]`.
        reference: Statistics of the reference set.
        num_points: Number of subset sizes, evenly spaced from `smallest` to `N`.
        smallest: Size of the smallest subset.
        seed: Seed of the draws.

    Returns:
        The distance at infinity, and the R² of the line.

    Raises:
        ValueError: `N` is not above `smallest`.
    """
    if len(generated) <= smallest:
        raise ValueError(f"FAD-inf needs more than {smallest} embeddings, got {len(generated)}.")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(smallest, len(generated), num_points).astype(int)
    factor = covariance_factor(reference.covariance)
    distances = []
    for size in sizes:
        subset = GaussianStatistics.empty(generated.shape[1])
        rows = rng.choice(len(generated), size, replace=False)
        for start in range(0, size, ROWS_AT_A_TIME):
            subset.update(generated[rows[start : start + ROWS_AT_A_TIME]])
        distances.append(frechet_distance(subset, reference, factor))
    return line_at_zero(1 / sizes, np.array(distances))


def line_at_zero(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the value at 0 and the R² of the least-squares line through points."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = ((y - slope * x - intercept) ** 2).sum()
    total = ((y - y.mean()) ** 2).sum()
    return float(intercept), float(1 - residual / total) if total else 1.0


def inception_score(logits: np.ndarray, num_splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """
    Inception score (arXiv 1606.03498, section 4): `exp(mean KL(p(y|x) || p(y)))`, over splits.

    Args:
        logits: `[N, classes]`, before the softmax.
        num_splits: Number of splits; split `i` is rows `i * N // num_splits` to `(i + 1) * N // num_splits`.
        seed: Seed of NumPy's `RandomState` that shuffles the rows first, as papers do; `None` keeps their order.

    Returns:
        Mean and population standard deviation over the splits.

    Raises:
        ValueError: There are fewer rows than splits.
    """
    if len(logits) < num_splits:
        raise ValueError(f"The inception score needs at least {num_splits} clips, got {len(logits)}.")
    count = len(logits)
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    bounds = [i * count // num_splits for i in range(num_splits + 1)]
    scores = []
    for first, last in zip(bounds, bounds[1:]):
        log_p = log_softmax(logits[order[first:last]])
        scores.append(np.exp((np.exp(log_p) * (log_p - _log_mean_exp(log_p))).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def kl_divergence(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """
    `KL(reference || generated)` of the softmax of each pair of rows, summed over classes, without an epsilon.

    Args:
        generated, reference: Logits `[pairs, classes]`. Row `i` of both belongs to the same clip.

    Returns:
        float64 `[pairs]`.
    """
    if generated.shape != reference.shape:
        raise ValueError(
            f"`generated` and `reference` must have the same shape, got {list(generated.shape)} and"
            f" {list(reference.shape)}."
        )
    log_q, log_p = log_softmax(generated), log_softmax(reference)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def kernel_distance(
    generated: np.ndarray, reference: np.ndarray, bandwidth: float | None = None, block_size: int = 2048
) -> float:
    """
    Kernel audio distance (KAD, arXiv 2502.15602): 100 times the unbiased squared maximum mean discrepancy with the
    kernel `exp(-d² / (2 b²))`. It can be negative.

    Args:
        generated: `[N, D]`.
        reference: `[M, D]`.
        bandwidth: `b`; defaults to the median distance within `generated`, as in the reference implementation (its
            paper says within the reference set: pass [`median_distance`] of it).
        block_size: Rows compared at a time, which bounds memory.

    Raises:
        ValueError: A set has fewer than two embeddings.
    """
    return jackknife_kernel_distance(generated, reference, np.zeros(len(generated), int), bandwidth, block_size)[0]


def jackknife_kernel_distance(
    generated: np.ndarray,
    reference: np.ndarray,
    groups: np.ndarray,
    bandwidth: float | None = None,
    block_size: int = 2048,
) -> tuple[float, float | None]:
    """
    [`kernel_distance`], and its standard error by the jackknife over groups of clips, with the bandwidth of all of them.

    Args:
        generated, reference, bandwidth, block_size: As for [`kernel_distance`].
        groups: Group of each generated embedding, int `[N]`.

    Returns:
        The distance, and its standard error; `None` if fewer than two embeddings are outside of a group.

    Raises:
        ValueError: A set has fewer than two embeddings.
    """
    if min(len(generated), len(reference)) < 2:
        raise ValueError(f"KAD needs at least 2 embeddings a set, got {len(generated)} and {len(reference)}.")
    if bandwidth is None:
        bandwidth = median_distance(generated)
    scale = 1 / (2 * bandwidth**2 + KERNEL_EPSILON)
    labels = np.unique(groups, return_inverse=True)[1]
    member = np.eye(labels.max() + 1)[labels]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-scale * _squared_distances(x, y))

    def blocks(rows: np.ndarray) -> Iterator[slice]:
        return (slice(start, start + block_size) for start in range(0, len(rows), block_size))

    within = sum(member[block].T @ (kernel(generated[block], generated) @ member) for block in blocks(generated))
    between = sum(member[block].T @ kernel(generated[block], reference).sum(axis=1) for block in blocks(generated))
    m = len(reference)
    of_reference = sum(kernel(reference[block], reference).sum() for block in blocks(reference))
    of_reference = (of_reference - m) / (m * (m - 1))

    def distance(kept: np.ndarray) -> float:
        n = member[:, kept].sum()
        of_generated = (within[kept][:, kept].sum() - n) / (n * (n - 1))
        return float(100 * (of_generated + of_reference - 2 * between[kept].sum() / (n * m)))

    every = np.arange(member.shape[1])
    value = distance(every)
    if len(generated) - member.sum(axis=0).max() < 2:
        return value, None
    return value, jackknife_error([distance(np.delete(every, number)) for number in every])


def median_distance(embeddings: np.ndarray, most: int = 4096) -> float:
    """
    Return the median Euclidean distance of all pairs of `[N, D]`, the lower one of two, as in PyTorch. From more than
    `most` rows, evenly spaced rows are taken.
    """
    if len(embeddings) > most:
        embeddings = embeddings[np.linspace(0, len(embeddings) - 1, most).astype(int)]
    pairs = np.triu_indices(len(embeddings), k=1)
    return float(np.sqrt(np.quantile(_squared_distances(embeddings, embeddings)[pairs], 0.5, method="lower")))


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows of two `[N, D]`, float64 `[N]`. It is 0 if a row is zero."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)


def mean_of_normalized(embeddings: np.ndarray) -> np.ndarray:
    """Normalise embeddings `[N, clips, D]` and return their mean over clips, `[N, D]`."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.divide(embeddings, norms, out=np.zeros_like(embeddings), where=norms > 0).mean(axis=-2)


def synchronization_error(logits: np.ndarray, offsets: Sequence[float]) -> np.ndarray:
    """
    DeSync (MMAudio, arXiv 2412.15322): absolute offset of the most likely class, mean over the windows of a clip.

    Args:
        logits: Synchformer's, `[clips, windows, classes]`.
        offsets: Offset of each class in seconds.

    Returns:
        Seconds, float64 `[clips]`.
    """
    return np.abs(np.asarray(offsets, dtype=np.float64))[np.argmax(logits, axis=-1)].mean(axis=-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis, float64."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _log_mean_exp(values: np.ndarray) -> np.ndarray:
    largest = values.max(axis=0)
    return largest + np.log(np.exp(values - largest).mean(axis=0))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    distances = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T
    return distances.clip(min=0)
