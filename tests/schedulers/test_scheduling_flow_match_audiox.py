import pytest
import torch

from audiox_diffusers import AudioXFlowMatchScheduler


def test_times():
    scheduler = AudioXFlowMatchScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    scheduler.set_timesteps(sigmas=[0.9, 0.2])
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([0.9, 0.2]))
    assert scheduler.num_inference_steps == 2 and scheduler.init_noise_sigma == 1 and len(scheduler) == 1000


@pytest.mark.parametrize("stochastic", [False, True])
def test_straight_flow_ends_at_the_sample(stochastic):
    """With the velocity from the current sample to a fixed one, every solver ends at the fixed one."""
    clean = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    scheduler = AudioXFlowMatchScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(5)
    sample = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    for time in scheduler.timesteps:
        velocity = (sample - clean) / time
        sample = scheduler.step(velocity, time, sample, generator=torch.Generator().manual_seed(2)).prev_sample
    torch.testing.assert_close(sample, clean, atol=1e-5, rtol=1e-5)


def test_steps():
    velocity, sample, noise = (torch.full((1, 2), value) for value in (2.0, 3.0, 5.0))
    euler = AudioXFlowMatchScheduler()
    euler.set_timesteps(4)
    assert euler.step(velocity, euler.timesteps[0], sample, return_dict=False)[0].tolist() == [[2.5, 2.5]]
    student = AudioXFlowMatchScheduler(stochastic_sampling=True)
    student.set_timesteps(4)
    # x0 = 3 - 1 * 2 = 1, then 0.25 * 1 + 0.75 * 5.
    assert student.step(velocity, student.timesteps[0], sample, variance_noise=noise)[0].tolist() == [[4.0, 4.0]]


def test_noise_comes_from_the_generator():
    scheduler = AudioXFlowMatchScheduler(stochastic_sampling=True)
    zeros = torch.zeros(2, 3, 4)

    def step(generator, sample):
        scheduler.set_timesteps(2)
        return scheduler.step(sample, 1.0, sample, generator=generator).prev_sample

    batch = step([torch.Generator().manual_seed(i) for i in range(2)], zeros)
    assert torch.equal(batch[1:], step([torch.Generator().manual_seed(1)], zeros[1:]))
    assert not torch.equal(batch[0], batch[1])


def test_add_noise():
    scheduler = AudioXFlowMatchScheduler()
    scheduler.set_timesteps(4)
    clean, noise = torch.ones(2, 3), torch.full((2, 3), 5.0)
    noised = scheduler.add_noise(clean, noise, torch.tensor([0.75, 0.25]))
    assert noised[:, 0].tolist() == [4.0, 2.0]


def test_round_trip(tmp_path):
    AudioXFlowMatchScheduler(stochastic_sampling=True).save_pretrained(tmp_path)
    loaded = AudioXFlowMatchScheduler.from_pretrained(tmp_path)
    assert loaded.config.stochastic_sampling


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_inference_steps": 0},
        {"num_inference_steps": 2.5},
        {"num_inference_steps": 2, "sigmas": [1.0]},
        {"sigmas": [1.5, 0.5]},
        {"sigmas": [0.5, 0.5]},
        {"sigmas": [0.5, 0.0]},
    ],
)
def test_bad_times(kwargs):
    with pytest.raises(ValueError, match="num_inference_steps|sigmas"):
        AudioXFlowMatchScheduler().set_timesteps(**kwargs)


def test_one_step_too_many():
    scheduler = AudioXFlowMatchScheduler()
    scheduler.set_timesteps(1)
    scheduler.step(torch.zeros(1, 2), 1.0, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="more often"):
        scheduler.step(torch.zeros(1, 2), 1.0, torch.zeros(1, 2))


def test_velocity_leads_to_the_given_sample():
    clean, sample = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for begin in range(4):
        scheduler = AudioXFlowMatchScheduler()
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(begin)
        time = scheduler.timesteps[begin]
        torch.testing.assert_close(sample - time * scheduler.velocity(clean, sample, time), clean)
