"""The metrics' formulas against the reference implementations and against closed forms."""

import numpy as np
import pytest

from audiox_diffusers.evaluation.statistics import (
    GaussianStatistics,
    cosine_similarity,
    frechet_distance,
    frechet_distance_at_infinity,
    grouped_statistics,
    inception_score,
    jackknife_frechet_distance,
    jackknife_kernel_distance,
    kernel_distance,
    kl_divergence,
    line_at_zero,
    mean_of_normalized,
    median_distance,
    merged,
    synchronization_error,
)


@pytest.fixture
def embeddings(golden):
    return golden["embeddings.gen"].numpy(), golden["embeddings.ref"].numpy()


@pytest.fixture
def logits(golden):
    return golden["logits.gen"].numpy(), golden["logits.ref"].numpy()


def frechet(a, b):
    return frechet_distance(GaussianStatistics.of(a), GaussianStatistics.of(b))


def test_frechet_distance_agrees_with_the_reference(embeddings, values):
    generated, reference = embeddings
    assert frechet(generated, reference) == pytest.approx(values["frechet.full"]["avbench"], rel=1e-6)


def test_frechet_distance_with_a_singular_covariance(embeddings, values):
    generated, reference = embeddings
    expected = values["frechet.rank_deficient"]["avbench"]
    assert frechet(generated[:8], reference) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_a_set_to_itself_is_zero(embeddings):
    assert frechet(embeddings[0], embeddings[0]) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_shifted_and_scaled_gaussians_has_a_closed_form():
    x = np.random.default_rng(0).normal(size=(500, 6))
    shift = np.arange(6.0)
    assert frechet(x + shift, x) == pytest.approx(shift @ shift)
    # With equal means and commuting covariances the distance is |C1^½ - C2^½|².
    centred = x - x.mean(axis=0)
    assert frechet(3 * centred, centred) == pytest.approx(4 * np.trace(np.cov(x.T)))


def test_frechet_distance_of_covariances_that_do_not_commute_has_a_closed_form():
    """In two dimensions, `Tr (C1 C2)^½ = (Tr C1 C2 + 2 (det C1 C2)^½)^½`."""
    first, second = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    product = first @ second
    assert not np.allclose(product, second @ first)
    trace_of_root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    a, b = GaussianStatistics(10, np.array([1.0, 0]), 9 * first), GaussianStatistics(5, np.array([0, 2.0]), 4 * second)
    assert frechet_distance(a, b) == pytest.approx(5 + 7 - 2 * trace_of_root)
    assert frechet_distance(b, a) == pytest.approx(5 + 7 - 2 * trace_of_root)


def test_statistics_in_pieces_are_those_of_the_whole(embeddings):
    whole = embeddings[1]
    pieces, other = GaussianStatistics.empty(16), GaussianStatistics.empty(16)
    for start in range(0, 50, 7):
        pieces.update(whole[start : min(start + 7, 50)])
    other.update(whole[50:])
    pieces.merge(other)
    assert pieces.count == 80
    np.testing.assert_allclose(pieces.mean, whole.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(pieces.covariance, np.cov(whole.astype(np.float64).T), rtol=1e-10)


@pytest.mark.parametrize("bad", [np.full((2, 3), np.nan), np.zeros((2, 4)), np.zeros(3)])
def test_statistics_refuse_what_is_no_embedding(bad):
    with pytest.raises(ValueError, match="`embeddings`"):
        GaussianStatistics.empty(3).update(bad)


def test_one_embedding_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_distance_at_infinity_is_nearer_to_the_truth_than_the_plain_one(hashed_numbers, values):
    generated = hashed_numbers(64_000, 7).numpy().reshape(2000, 32)
    reference = GaussianStatistics.of(1.1 * hashed_numbers(64_000, 8).numpy().reshape(2000, 32))
    plain = frechet_distance(GaussianStatistics.of(generated), reference)
    assert plain == pytest.approx(values["fad_inf_plain"], rel=1e-6)
    extrapolated, fit = frechet_distance_at_infinity(generated, reference)
    truth = 32 * (0.1 * np.sqrt(1 / 3)) ** 2
    assert abs(extrapolated - truth) < 0.6 * abs(plain - truth)
    assert fit > 0.9
    with pytest.raises(ValueError, match="more than 500"):
        frechet_distance_at_infinity(generated[:500], reference)


def test_line_through_the_reference_points(golden, values):
    n, distances = golden["fad_inf.points"].numpy().T
    intercept, r2 = line_at_zero(1 / n, distances)
    assert intercept == pytest.approx(values["fad_inf"]["score"], rel=1e-6)
    assert r2 == pytest.approx(values["fad_inf"]["r2"], rel=1e-6)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("is.splits10_shuffle2020", {}),
        ("is.splits10_in_order", {"seed": None}),
        ("is.splits1", {"num_splits": 1}),
    ],
)
def test_inception_score_agrees_with_the_reference(logits, values, name, settings):
    mean, deviation = inception_score(logits[0], **settings)
    assert mean == pytest.approx(values[name]["mean"], rel=1e-6)
    assert deviation == pytest.approx(values[name]["std"], abs=1e-7)


def test_inception_score_of_one_hot_and_of_uniform_posteriors():
    one_hot = 1e4 * np.tile(np.eye(5), (4, 1))
    assert inception_score(one_hot, num_splits=1)[0] == pytest.approx(5)
    assert inception_score(np.zeros((20, 5)))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 10"):
        inception_score(np.zeros((9, 5)))


def test_kl_divergence_agrees_with_the_reference(logits, values):
    generated, reference = logits
    assert kl_divergence(generated, reference).mean() == pytest.approx(values["kl.avbench"]["softmax"], rel=1e-6)
    # The other direction, in which the reference adds 1e-6 before the logarithm.
    opposite = kl_divergence(reference, generated).mean()
    assert opposite == pytest.approx(values["kl.stable_audio_metrics"]["kl"], rel=1e-3)
    assert kl_divergence(generated, generated).max() == 0
    with pytest.raises(ValueError, match="same shape"):
        kl_divergence(generated, reference[1:])


def test_kl_divergence_of_known_distributions_is_that_from_reference_to_generated():
    generated, reference = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    assert kl_divergence(generated, reference + 7) == pytest.approx(0.25 * np.log(2))
    skewed = np.log([[0.9, 0.05, 0.05]])
    expected = 0.25 * np.log(0.25 / 0.9) + 0.5 * np.log(0.5 / 0.05) + 0.25 * np.log(0.25 / 0.05)
    assert kl_divergence(skewed, reference) == pytest.approx(expected)


def test_kernel_distance_of_three_and_two_points_is_the_unbiased_estimate():
    """The distances within the generated set are 1, 2 and 3, so the bandwidth is their median, 2."""
    generated, reference = np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [4.0]])
    assert median_distance(generated) == 2
    kernel = {d: np.exp(-(d**2) / 8) for d in range(5)}
    within = (kernel[1] + kernel[2] + kernel[3]) / 3
    between = (kernel[0] + kernel[4] + kernel[1] + kernel[3] + kernel[3] + kernel[1]) / 6
    expected = 100 * (within + kernel[4] - 2 * between)
    assert kernel_distance(generated, reference) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_agrees_with_the_reference(embeddings, values):
    generated, reference = embeddings[0][:30], embeddings[1][:40]
    expected = values["kad"]
    assert kernel_distance(generated, reference) == pytest.approx(expected["default_float64"], rel=1e-6)
    # The reference works in float32.
    assert kernel_distance(generated, reference, 2.0) == pytest.approx(expected["bandwidth_2"], rel=1e-4)
    of_reference = kernel_distance(generated, reference, median_distance(reference))
    assert of_reference == pytest.approx(expected["bandwidth_of_reference_value"], rel=1e-4)
    assert kernel_distance(generated, reference, block_size=7) == pytest.approx(expected["default_float64"], rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(generated[:1], reference)


def test_errors_by_the_jackknife_are_the_spread_over_other_clips():
    """Over 60 independent sets, distances deviate about as much as the error of a single set says."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(400, 4))
    statistics = GaussianStatistics.of(reference)
    values, errors = [], []
    for _ in range(60):
        clips = list(rng.normal(0.5, size=(100, 2, 4)))
        generated, groups = np.concatenate(clips), np.repeat(np.arange(100) % 10, 2)
        both = (
            jackknife_frechet_distance(grouped_statistics(clips, 10), statistics),
            jackknife_kernel_distance(generated, reference, groups, 2.0),
        )
        values.append([value for value, _ in both])
        errors.append([error for _, error in both])
    spread, estimate = np.std(values, axis=0), np.mean(errors, axis=0)
    assert ((0.7 * spread < estimate) & (estimate < 1.5 * spread)).all()


def test_the_jackknife_leaves_out_one_group_at_a_time(embeddings):
    generated, reference = embeddings
    groups = np.arange(len(generated)) % 5
    value, error = jackknife_kernel_distance(generated, reference, groups, 2.0, block_size=7)
    assert value == pytest.approx(kernel_distance(generated, reference, 2.0))
    without = [kernel_distance(generated[groups != group], reference, 2.0) for group in range(5)]
    assert error == pytest.approx(np.sqrt(4 / 5 * ((without - np.mean(without)) ** 2).sum()))

    statistics = grouped_statistics((clip[None] for clip in generated), 5)
    value, error = jackknife_frechet_distance(statistics, GaussianStatistics.of(reference))
    assert value == pytest.approx(frechet(generated, reference))
    without = [frechet(generated[groups != group], reference) for group in range(5)]
    assert error == pytest.approx(np.sqrt(4 / 5 * ((without - np.mean(without)) ** 2).sum()))


def test_an_error_needs_two_embeddings_outside_of_each_group():
    few = [np.ones((1, 2)), np.zeros((1, 2))]
    reference = np.random.default_rng(0).normal(size=(9, 2))
    value, error = jackknife_frechet_distance(grouped_statistics(few, 10), GaussianStatistics.of(reference))
    assert value > 0 and error is None
    assert jackknife_kernel_distance(np.concatenate(few), reference, np.arange(2))[1] is None


def test_statistics_of_groups_are_those_of_all_clips(embeddings):
    groups = grouped_statistics((clip[None] for clip in embeddings[1]), 7, block_size=3)
    assert [group.count for group in groups] == [12, 12, 12, 11, 11, 11, 11]
    np.testing.assert_allclose(merged(groups).covariance, np.cov(embeddings[1].astype(np.float64).T), rtol=1e-10)
    np.testing.assert_allclose(groups[2].mean, embeddings[1][2::7].astype(np.float64).mean(axis=0), rtol=1e-12)


def test_cosine_scores_agree_with_the_reference(golden, values):
    each = cosine_similarity(golden["clap.text"].numpy(), golden["clap.audio"].numpy())
    np.testing.assert_allclose(each, golden["clap.each"].numpy(), atol=1e-6)
    assert each[-1] == 0  # the last sound's embedding is zero
    video, audio = (mean_of_normalized(golden[f"imagebind.{name}_clips"].numpy()) for name in ("video", "audio"))
    np.testing.assert_allclose(cosine_similarity(video, audio), golden["imagebind.each"].numpy(), atol=1e-6)


def test_synchronization_error_takes_the_most_likely_class(golden, values):
    error = synchronization_error(golden["desync.logits"].numpy(), golden["desync.grid"])
    assert error.shape == (10,)
    assert error.mean() == pytest.approx(values["desync"]["avbench"], rel=1e-6)
