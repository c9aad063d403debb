"""Few-step sampling: both schedulers denoise and renoise at the times that a model was distilled for."""

import math

import pytest
import torch
from helpers import assert_equal, normal

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler

TIMES = [0.99, 0.75, 0.5, 0.25]
SCHEDULERS = [AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler]


def few_step(scheduler_class, times=TIMES):
    return scheduler_class(stochastic_sampling=True, distilled_timesteps=times)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
@pytest.mark.parametrize(("steps", "expected"), [(4, TIMES), (3, TIMES[:3]), (2, [0.99, 0.5]), (1, [0.99])])
def test_steps_are_chosen_among_the_distilled_times(scheduler_class, steps, expected):
    scheduler = few_step(scheduler_class)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(expected))
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_more_steps_than_distilled_are_refused(scheduler_class):
    with pytest.raises(ValueError, match="`num_inference_steps` is 5, but the model was distilled for 4 steps"):
        few_step(scheduler_class).set_timesteps(5)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
@pytest.mark.parametrize("times", [[], [0.5, 0.75], [0.5, 0.5], [1.1, 0.5], [0.5, 0.0], ["a"], [float("nan")], 0.5])
def test_bad_distilled_times_are_refused(scheduler_class, times):
    with pytest.raises(ValueError, match="`distilled_timesteps` must be decreasing numbers"):
        few_step(scheduler_class, times)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_config_round_trip(scheduler_class, tmp_path):
    few_step(scheduler_class).save_pretrained(tmp_path)
    loaded = scheduler_class.from_pretrained(tmp_path)
    assert loaded.config.stochastic_sampling and loaded.config.distilled_timesteps == TIMES
    assert_equal(loaded.timesteps, few_step(scheduler_class).timesteps)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_a_perfect_model_gives_its_data_at_every_step(scheduler_class):
    """The sample is the clean one plus new noise of each level, and clean after the last step."""
    scheduler = few_step(scheduler_class)
    clean, noise = normal(2, 3, 5), [normal(2, 3, 5, seed=seed) for seed in range(1, 5)]
    scheduler.set_timesteps(4)
    sample = scheduler.add_noise(clean, noise[0], scheduler.timesteps[:1].expand(2))
    for index, time in enumerate(scheduler.timesteps):
        expected = scheduler.add_noise(clean, noise[index], time.expand(2))
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)
        velocity = scheduler.velocity(clean, sample, time)
        next_noise = noise[index + 1] if index < 3 else None
        sample = scheduler.step(velocity, time, sample, variance_noise=next_noise).prev_sample
    torch.testing.assert_close(sample, clean, rtol=1e-4, atol=1e-4)


def test_both_paths_take_the_same_steps():
    """
    The cosine path at time `t` is the flow at `sin / (cos + sin)`, with `x` divided by `cos + sin`. So one model of the
    data gives the same samples on both.
    """
    flow_times = [0.9, 0.6, 0.2]
    cosine_times = [math.atan(t / (1 - t)) * 2 / math.pi for t in flow_times]
    cosine = few_step(AudioXDPMSolverSDEScheduler, cosine_times)
    flow = few_step(AudioXFlowMatchScheduler, flow_times)
    start, results = normal(2, 3), []
    for scheduler in (cosine, flow):
        scheduler.set_timesteps(3)
        sample = start * scheduler.sigmas[0].item() if scheduler is cosine else start * 0.9
        for index, time in enumerate(scheduler.timesteps):
            level = scheduler.sigmas[index].item()
            noisy = sample if scheduler is cosine else sample / (1 - level)  # x0 + sigma noise on both paths
            denoised = torch.tanh(noisy / 3)
            velocity = scheduler.velocity(denoised, sample, time)
            sample = scheduler.step(velocity, time, sample, variance_noise=normal(2, 3, seed=index + 1)).prev_sample
        results.append(sample)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
