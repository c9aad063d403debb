"""Distillation losses on normal distributions, whose denoised samples are known in closed form."""

import pytest
import torch
from helpers import normal

from audiox_diffusers.training.distillation.losses import (
    consistency_loss,
    distribution_matching_loss,
    fake_score_loss,
    ode_regression_loss,
    predict_clean,
    roll_out,
    teacher_path,
)
from audiox_diffusers.training.objective import RectifiedFlowObjective, VelocityObjective

OBJECTIVES = [VelocityObjective(), RectifiedFlowObjective()]


def gaussian(objective, mean: float, deviation: float = 1.0):
    """Predict the velocity of data `N(mean, deviation^2)`."""

    def predict(noised, timestep):
        alpha, sigma = objective.levels(timestep.view(-1, 1, 1))
        share = alpha * deviation**2 / ((alpha * deviation) ** 2 + sigma**2)
        clean = mean + share * (noised - alpha * mean)
        return objective.target(clean, (noised - alpha * clean) / sigma.clamp(min=1e-6), timestep)

    return predict


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_split_inverts_the_noising(objective):
    clean, noise, timestep = normal(4, 3, 2), normal(4, 3, 2, seed=1), torch.tensor([0.1, 0.4, 0.7, 0.9])
    noised, velocity = objective.add_noise(clean, noise, timestep), objective.target(clean, noise, timestep)
    for actual, expected in zip(objective.split(velocity, noised, timestep), (clean, noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("time", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("mean", [-1.0, 0.0, 2.0])
def test_the_gradient_moves_samples_towards_the_teacher(objective, time, mean):
    """The samples have the mean `mean`, the teacher's data the mean 0.5."""
    sample = (mean + normal(2000, 1, 1)).requires_grad_()
    timestep = torch.full((2000,), time)
    teacher, fake = gaussian(objective, 0.5), gaussian(objective, mean)
    loss, metrics = distribution_matching_loss(objective, sample, teacher, fake, timestep, normal(2000, 1, 1, seed=1))
    loss.sum().backward()
    # Descent moves against the gradient.
    assert torch.sign(-sample.grad.mean()) == torch.sign(torch.tensor(0.5 - mean))
    assert metrics["gradient"] > 0 and metrics["teacher_error"] > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_scores_give_no_gradient(objective):
    sample = normal(8, 2, 3).requires_grad_()
    teacher = gaussian(objective, 0.0)
    loss, metrics = distribution_matching_loss(
        objective, sample, teacher, teacher, torch.full((8,), 0.5), normal(8, 2, 3, seed=1)
    )
    loss.sum().backward()
    assert not sample.grad.any() and metrics["gradient"] == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_the_difference_over_the_teachers_error(objective):
    """DMD2's formula, written out."""
    sample, noise = normal(3, 2, 4).requires_grad_(), normal(3, 2, 4, seed=1)
    timestep = torch.tensor([0.2, 0.5, 0.8])
    teacher, fake = gaussian(objective, 1.0), gaussian(objective, -1.0, 0.5)
    loss, _ = distribution_matching_loss(objective, sample, teacher, fake, timestep, noise)
    loss.sum().backward()
    with torch.no_grad():
        noised = objective.add_noise(sample, noise, timestep)
        real, wrong = (predict_clean(objective, predict, noised, timestep) for predict in (teacher, fake))
        expected = (wrong - real) / (sample - real).abs().mean(dim=(1, 2), keepdim=True) / 8
    torch.testing.assert_close(sample.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_fake_score_of_the_right_distribution_has_the_lowest_loss(objective):
    sample, noise, timestep = 1 + 0.5 * normal(4000, 1, 1), normal(4000, 1, 1, seed=1), torch.full((4000,), 0.5)
    losses = {
        (mean, deviation): fake_score_loss(
            objective, sample, gaussian(objective, mean, deviation), timestep, noise
        ).mean()
        for mean in (0.5, 1.0, 1.5)
        for deviation in (0.3, 0.5, 0.9)
    }
    assert min(losses, key=losses.get) == (1.0, 0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_teachers_path_ends_in_its_distribution(objective):
    times = [0.99, 0.7, 0.4]
    path = teacher_path(objective, gaussian(objective, 2.0, 0.5), times, normal(4000, 1, 1), 60)
    assert path.shape == (4, 4000, 1, 1)
    assert path[-1].mean().item() == pytest.approx(2.0, abs=0.05)
    assert path[-1].std().item() == pytest.approx(0.5, abs=0.05)
    for noised, time in zip(path, times, strict=False):
        alpha, sigma = objective.levels(torch.tensor(time))
        assert noised.mean().item() == pytest.approx(2 * alpha.item(), abs=0.05)
        assert noised.std().item() == pytest.approx(((0.5 * alpha) ** 2 + sigma**2).sqrt().item(), abs=0.05)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_roll_out_of_a_perfect_student_is_noised_data(objective):
    """Such a student maps every input to the same clean sample."""
    times, noises = [0.99, 0.6, 0.3], [normal(5, 2, 3, seed=seed) for seed in range(3)]
    clean = normal(5, 2, 3, seed=9)

    def student(noised, timestep):
        alpha, sigma = objective.levels(timestep.view(-1, 1, 1))
        return objective.target(clean, (noised - alpha * clean) / sigma, timestep)

    noised = roll_out(objective, student, times, noises)
    torch.testing.assert_close(
        noised, objective.add_noise(clean, noises[2], torch.full((5,), 0.3)), rtol=1e-4, atol=1e-4
    )
    alone = roll_out(objective, student, times[:1], noises[:1])
    _, sigma = objective.levels(torch.tensor(0.99))
    torch.testing.assert_close(alone, sigma * noises[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ode_regression_is_zero_for_the_path_of_a_point(objective):
    """All paths of a teacher of one point end there, so the teacher itself is the student."""
    times, point = [0.9, 0.5], gaussian(objective, 1.5, 1e-4)
    path = teacher_path(objective, point, times, normal(6, 2, 2), 20)
    assert ode_regression_loss(objective, point, path, times).max() < 1e-6
    assert ode_regression_loss(objective, gaussian(objective, 0.0, 1e-4), path, times).min() > 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_consistency_is_zero_for_the_path_of_a_point(objective):
    point, other = gaussian(objective, 1.5, 1e-4), gaussian(objective, 0.0, 1e-4)
    latents, noise = torch.full((6, 2, 2), 1.5), normal(6, 2, 2)
    timestep, after = torch.linspace(0.2, 0.9, 6), torch.linspace(0.1, 0.8, 6)
    assert consistency_loss(objective, latents, noise, timestep, after, point, point, point).max() < 1e-3
    assert consistency_loss(objective, latents, noise, timestep, after, other, point, point).min() > 0.5
    # At time 0 the target is the teacher's own result, whatever the moving average predicts.
    end = torch.zeros(6)
    assert consistency_loss(objective, latents, noise, timestep, end, point, other, point).max() < 1e-3
