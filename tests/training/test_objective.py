import math

import pytest
import torch
from diffusers import CosineDPMSolverMultistepScheduler, EulerDiscreteScheduler
from helpers import normal

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from audiox_diffusers.training.objective import (
    RectifiedFlowObjective,
    TimestepSampler,
    VelocityObjective,
    diffusion_loss,
    objective_for,
)

OBJECTIVES = [VelocityObjective(), RectifiedFlowObjective()]


@torch.no_grad()
def test_loss_matches_the_released_code(pipe, golden, close):
    objective = objective_for(pipe.scheduler)
    sample = golden["train.x0"], golden["train.noise"], golden["train.t"]
    noised, target = objective.add_noise(*sample), objective.target(*sample)
    close(noised, golden["train.noised"])
    close(target, golden["train.target_v"])
    velocity = pipe.transformer(noised, golden["train.t"], golden["cond.context"]).sample
    close(diffusion_loss(velocity, target).mean()[None], golden["train.loss"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_from_data_to_noise(objective):
    latents, noise = normal(2, 3, 4, 5)
    noised = objective.add_noise(latents, noise, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(noised, torch.stack((latents[0], noise[1], latents[2])), atol=1e-6, rtol=0)


def test_rectified_flow_with_known_numbers():
    latents, noise, timestep = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -4.0), torch.tensor([0.25])
    assert RectifiedFlowObjective().add_noise(latents, noise, timestep).item() == 0.5
    assert RectifiedFlowObjective().target(latents, noise, timestep).item() == -6


@pytest.mark.parametrize(("objective", "speed"), [(VelocityObjective(), math.pi / 2), (RectifiedFlowObjective(), 1)])
def test_the_target_is_the_direction_of_the_path(objective, speed):
    latents, noise = normal(2, 4, 3, 5).double()
    timestep, step = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64), 1e-6
    ahead = objective.add_noise(latents, noise, timestep + step)
    behind = objective.add_noise(latents, noise, timestep - step)
    torch.testing.assert_close((ahead - behind) / (2 * step * speed), objective.target(latents, noise, timestep))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_the_weight_is_min_snr_of_the_error_of_x0(objective, gamma):
    """The weight is `min(SNR, gamma)` times the squared error of `x0` per squared error of the velocity."""
    timestep = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    one, zero = torch.ones(25, 1, dtype=torch.float64), torch.zeros(25, 1, dtype=torch.float64)
    alpha, sigma = (objective.add_noise(*ends, timestep)[:, 0] for ends in ((one, zero), (zero, one)))
    # x_t = alpha x0 + sigma e and v = a e + b x0, so an error of 1 in v moves x0 by sigma / (sigma b - alpha a).
    a, b = (objective.target(*ends, timestep)[:, 0] for ends in ((zero, one), (one, zero)))
    moved = sigma / (sigma * b - alpha * a)
    expected = torch.clamp((alpha / sigma) ** 2, max=gamma) * moved**2
    torch.testing.assert_close(objective.loss_weight(timestep, gamma), expected)


def test_the_velocity_weight_matches_the_paper():
    timestep = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    snr = 1 / torch.tan(timestep * math.pi / 2) ** 2
    weight = VelocityObjective().loss_weight(timestep, 5.0)
    torch.testing.assert_close(weight, snr.clamp(max=5) / (snr + 1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_weight_is_zero_at_both_ends(objective):
    """The velocity says nothing about clean data there: there is no signal at 1 and no noise at 0."""
    weight = objective.loss_weight(torch.tensor([0.0, 1.0]), 5.0)
    torch.testing.assert_close(weight, torch.zeros(2))


@pytest.mark.parametrize(
    ("scheduler", "objective"),
    [
        (AudioXDPMSolverSDEScheduler, VelocityObjective),
        (CosineDPMSolverMultistepScheduler, VelocityObjective),
        (AudioXFlowMatchScheduler, RectifiedFlowObjective),
    ],
)
def test_objective_of_a_scheduler(scheduler, objective):
    # Only the class counts. The scheduler of diffusers cannot be set up without torchsde.
    assert type(objective_for(scheduler.__new__(scheduler))) is objective


def test_objective_of_another_scheduler():
    with pytest.raises(ValueError, match="`scheduler`.*EulerDiscreteScheduler"):
        objective_for(EulerDiscreteScheduler())


def test_loss_of_each_sample():
    prediction = torch.tensor([[[1.0, 2.0]], [[3.0, 3.0]]], dtype=torch.bfloat16)
    target = torch.tensor([[[1.0, 4.0]], [[0.0, 0.0]]])
    loss = diffusion_loss(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [2, 9]
    assert diffusion_loss(prediction, target, torch.tensor([0.5, 2.0])).tolist() == [1, 18]


def test_loss_is_taken_in_float32():
    """A difference of 300 has a square that float16 cannot hold."""
    prediction, target = torch.full((1, 4), 300.0, dtype=torch.float16), torch.zeros(1, 4, dtype=torch.float16)
    assert diffusion_loss(prediction, target).tolist() == [90000]


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_timesteps_depend_on_their_number_alone(distribution):
    def sampler():
        return TimestepSampler(distribution, seed=3)

    all_at_once = sampler().sample(0, 64)
    assert all_at_once.dtype == torch.float32 and all_at_once.shape == (64,)
    parts = sampler()
    assert torch.equal(torch.cat([parts.sample(0, 3), parts.sample(3, 5), parts.sample(8, 56)]), all_at_once)
    assert torch.equal(parts.sample(40, 7), all_at_once[40:47]), "after skipping some"
    assert torch.equal(parts.sample(0, 64), all_at_once), "after starting over"
    assert torch.equal(sampler().sample(17, 1), all_at_once[17:18]), "in a resumed run"


def test_timesteps_depend_on_the_seed():
    assert not torch.equal(TimestepSampler(seed=0).sample(0, 8), TimestepSampler(seed=1).sample(0, 8))


@pytest.mark.parametrize("seed", range(4))
def test_timesteps_cover_the_range_evenly(seed):
    """Every aligned run of 2^n points of a Sobol sequence has one point in each of 2^n equal cells."""
    sampler = TimestepSampler(seed=seed)
    for first in (0, 256, 512):
        cells = (sampler.sample(first, 256).double() * 256).floor()
        assert sorted(cells.tolist()) == list(range(256))


def test_logit_normal_timesteps():
    sampler = TimestepSampler("logit_normal", logit_mean=-0.5, logit_std=0.8)
    logits = sampler.sample(0, 4096).double().logit()
    assert logits.mean().item() == pytest.approx(-0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)
    within = ((logits + 0.5).abs() < 0.8).double().mean().item()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)


def test_logit_normal_takes_the_same_points():
    """Both distributions map the same points, and the median of both is 1/2."""
    uniform, logit_normal = TimestepSampler().sample(0, 512), TimestepSampler("logit_normal").sample(0, 512)
    assert torch.equal(uniform.argsort(), logit_normal.argsort())
    assert torch.equal(uniform < 0.5, logit_normal < 0.5)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_timesteps_stay_away_from_the_ends(distribution):
    times = TimestepSampler(distribution, logit_std=100.0).sample(0, 2**18)
    assert times.min().item() == pytest.approx(1e-5, rel=1e-3)
    assert times.max().item() == pytest.approx(1 - 1e-5, abs=1e-7)


def test_timesteps_after_the_last_point_of_the_engine():
    sampler, period = TimestepSampler(), 2**30
    start = sampler.sample(0, 8)
    assert torch.equal(sampler.sample(period, 8), start)
    assert torch.equal(sampler.sample(3 * period + 2, 6), start[2:])
    across = sampler.sample(period - 4, 8)
    assert torch.equal(across[4:], start[:4])
    assert across.min() > 0 and across.max() < 1


def test_timesteps_leave_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = TimestepSampler(seed=1).sample(5, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(TimestepSampler(seed=1).sample(5, 4), first)


def test_unknown_distribution():
    with pytest.raises(ValueError, match="`distribution` must be 'uniform' or 'logit_normal', got 'normal'"):
        TimestepSampler("normal")
