import inspect
import math

import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from helpers import normal

from audiox_diffusers import AudioXDPMSolverSDEScheduler

CONFIGS = [
    {},
    {"sigma_min": 0.03},
    {"sigma_max": 80.0},
    {"eta": 0.0},
    {"eta": 0.5},
    {"solver_order": 1},
    {"solver_order": 2},
    {"num_train_timesteps": 100},
]


def velocity_of(denoised, sample, sigma):
    """Return the model output for a denoised sample."""
    return (sample / (sigma**2 + 1) - denoised) * math.sqrt(sigma**2 + 1) / sigma


def dummy_model(model_input, timestep):
    return model_input * timestep / (timestep + 1)


def full_loop(scheduler, sample, steps=10, **kwargs):
    scheduler.set_timesteps(steps)
    sample = sample * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = dummy_model(scheduler.scale_model_input(sample, timestep), timestep)
        sample = scheduler.step(output, timestep, sample, **kwargs).prev_sample
    return sample


@pytest.mark.parametrize("config", CONFIGS)
def test_config_round_trip(config, tmp_path):
    scheduler = AudioXDPMSolverSDEScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    for other in (
        AudioXDPMSolverSDEScheduler.from_pretrained(tmp_path),
        AudioXDPMSolverSDEScheduler.from_config(scheduler.config),
    ):
        arguments = list(inspect.signature(AudioXDPMSolverSDEScheduler.__init__).parameters)[1:]
        assert {name: other.config[name] for name in arguments} == {name: scheduler.config[name] for name in arguments}
        loops = [full_loop(s, normal(2, 3, 5), generator=torch.Generator().manual_seed(0)) for s in (scheduler, other)]
        assert torch.equal(*loops)
    assert {name: scheduler.config[name] for name in config} == config


@pytest.mark.parametrize("config", CONFIGS[1:-1])
def test_every_parameter_matters(config):
    loops = [
        full_loop(AudioXDPMSolverSDEScheduler(**c), normal(2, 3, 5), generator=torch.Generator().manual_seed(0))
        for c in ({}, config)
    ]
    assert not torch.allclose(*loops, rtol=1e-3)


def test_from_config_with_overrides():
    scheduler = AudioXDPMSolverSDEScheduler(sigma_min=0.03, eta=0.5)
    changed = AudioXDPMSolverSDEScheduler.from_config(scheduler.config, sigma_max=80.0)
    assert (changed.config.sigma_min, changed.config.sigma_max, changed.config.eta) == (0.03, 80.0, 0.5)


def test_compatibles():
    assert AudioXDPMSolverSDEScheduler().compatibles == [AudioXDPMSolverSDEScheduler]


@pytest.mark.parametrize("number", [1, 10, 1000])
def test_length(number):
    scheduler = AudioXDPMSolverSDEScheduler(num_train_timesteps=number)
    assert len(scheduler) == len(scheduler.timesteps) == number


def test_schedule():
    scheduler = AudioXDPMSolverSDEScheduler(sigma_min=0.5, sigma_max=8.0)
    scheduler.set_timesteps(5)
    assert scheduler.order == 1
    assert scheduler.num_inference_steps == 5
    expected = torch.tensor([8, 4, 2, 1, 0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(scheduler.sigmas, expected)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([math.atan(s) * 2 / math.pi for s in expected[:-1]]))
    torch.testing.assert_close(scheduler.timesteps[3].item(), 0.5)
    assert scheduler.timesteps.dtype == torch.float32
    assert (scheduler.timesteps.diff() < 0).all()
    assert scheduler.init_noise_sigma == pytest.approx(8)
    scheduler.set_timesteps(1)
    assert scheduler.sigmas.tolist() == pytest.approx([8, 0])


def test_custom_sigmas():
    scheduler = AudioXDPMSolverSDEScheduler()
    scheduler.set_timesteps(sigmas=[10.0, 3.0, 1.0])
    assert scheduler.sigmas.tolist() == [10, 3, 1, 0]
    assert scheduler.init_noise_sigma == 10
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 3
    scheduler.set_timesteps(4)
    assert scheduler.init_noise_sigma == pytest.approx(500)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_inference_steps": 0},
        {"num_inference_steps": 3, "sigmas": [1.0]},
        {"sigmas": []},
        {"sigmas": [1.0, 2.0]},
        {"sigmas": [1.0, 1.0]},
        {"sigmas": [1.0, 0.0]},
        {"sigmas": [[2.0, 1.0]]},
    ],
)
def test_bad_schedule(kwargs):
    with pytest.raises(ValueError, match="num_inference_steps|sigmas"):
        AudioXDPMSolverSDEScheduler().set_timesteps(**kwargs)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 500.0}, "sigma_min"),
        ({"sigma_max": 0.1}, "sigma_max"),
        ({"eta": -0.1}, "eta"),
        ({"eta": 1.5}, "eta"),
        ({"solver_order": 0}, "solver_order"),
        ({"solver_order": 4}, "solver_order"),
    ],
)
def test_bad_config(config, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        AudioXDPMSolverSDEScheduler(**config)


def test_scale_model_input():
    scheduler = AudioXDPMSolverSDEScheduler(sigma_min=0.75, sigma_max=3.0)
    scheduler.set_timesteps(3)
    sample = normal(2, 3, 5)
    for timestep, sigma in zip(scheduler.timesteps, (3.0, 1.5, 0.75)):
        scaled = scheduler.scale_model_input(sample, timestep)
        torch.testing.assert_close(scaled, sample / math.sqrt(sigma**2 + 1))
        scheduler.step(sample, timestep, sample)


def test_scale_model_input_keeps_dtype():
    scheduler = AudioXDPMSolverSDEScheduler()
    assert scheduler.scale_model_input(normal(1, 2).half(), scheduler.timesteps[0]).dtype == torch.float16


def test_denoise():
    """`x = x0 + s noise` has the velocity `cos noise - sin x0` at `s = tan`."""
    clean, noise = normal(2, 3), normal(2, 3, seed=1)
    for sigma in (0.1, 1.0, 20.0):
        angle = math.atan(sigma)
        velocity = math.cos(angle) * noise - math.sin(angle) * clean
        denoised = AudioXDPMSolverSDEScheduler().denoise(velocity, clean + sigma * noise, sigma)
        torch.testing.assert_close(denoised, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (7,)])
def test_step_shape(shape):
    scheduler = AudioXDPMSolverSDEScheduler()
    scheduler.set_timesteps(10)
    sample = normal(*shape)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(0.1 * sample, timestep, sample).prev_sample
        assert sample.shape == shape and sample.isfinite().all()


def test_step_as_tuple():
    outputs = []
    for return_dict in (True, False):
        scheduler = AudioXDPMSolverSDEScheduler()
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(0)
        timestep = scheduler.timesteps[4]
        outputs.append(
            scheduler.step(normal(2, 3, seed=1), timestep, normal(2, 3), generator=generator, return_dict=return_dict)
        )
    assert isinstance(outputs[0], SchedulerOutput) and isinstance(outputs[1], tuple) and len(outputs[1]) == 1
    assert torch.equal(outputs[0].prev_sample, outputs[1][0])


@pytest.mark.parametrize("kind", [float, torch.Tensor.double, torch.Tensor.clone])
def test_timestep_as_number_or_tensor(kind):
    scheduler = AudioXDPMSolverSDEScheduler()
    scheduler.set_timesteps(10)
    scheduler.step(normal(2, 3), kind(scheduler.timesteps[4]), normal(2, 3))
    assert scheduler.step_index == 5


def test_generator():
    scheduler = AudioXDPMSolverSDEScheduler()
    loops = [full_loop(scheduler, normal(2, 3, 5), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(loops[0], loops[1]) and not torch.allclose(loops[0], loops[2])

    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    batch = full_loop(scheduler, normal(2, 3, 5), generator=generators)
    for i in range(2):
        alone = full_loop(scheduler, normal(2, 3, 5)[i : i + 1], generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(batch[i : i + 1], alone)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_comes_from_the_generator_only(eta):
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    full_loop(AudioXDPMSolverSDEScheduler(eta=eta), normal(2, 3, 5), generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state()) == (eta == 0)


def test_passed_noise_equals_noise_of_the_generator():
    outputs = []
    for kwargs in ({"generator": torch.Generator().manual_seed(3)}, {"variance_noise": normal(2, 3, seed=3)}):
        scheduler = AudioXDPMSolverSDEScheduler()
        scheduler.set_timesteps(10)
        outputs.append(
            scheduler.step(normal(2, 3), scheduler.timesteps[0], normal(2, 3, seed=1), **kwargs).prev_sample
        )
    assert torch.equal(*outputs)


def test_last_step_is_the_denoised_sample():
    scheduler = AudioXDPMSolverSDEScheduler()
    scheduler.set_timesteps(1)
    sample, velocity = normal(2, 3), normal(2, 3, seed=1)
    output = scheduler.step(velocity, scheduler.timesteps[0], sample).prev_sample
    assert torch.equal(output, scheduler.denoise(velocity, sample, scheduler.init_noise_sigma))


def test_step_beyond_the_end():
    scheduler = AudioXDPMSolverSDEScheduler()
    sample = full_loop(scheduler, normal(2, 3))
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(sample, scheduler.timesteps[-1], sample)
    scheduler.set_timesteps(10)
    scheduler.step(sample, scheduler.timesteps[0], sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    scheduler = AudioXDPMSolverSDEScheduler(sigma_max=80.0)
    scheduler.set_timesteps(10)
    sample = normal(2, 3).to(dtype)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(normal(2, 3).to(dtype), timestep, sample).prev_sample
        assert sample.dtype == dtype and sample.isfinite().all()


def test_step_does_not_change_its_inputs():
    scheduler = AudioXDPMSolverSDEScheduler()
    scheduler.set_timesteps(4)
    output, sample, noise = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    for timestep in scheduler.timesteps:
        scheduler.step(output, timestep, sample, variance_noise=noise)
    assert torch.equal(output, normal(2, 3))
    assert torch.equal(sample, normal(2, 3, seed=1))
    assert torch.equal(noise, normal(2, 3, seed=2))


def test_add_noise():
    scheduler = AudioXDPMSolverSDEScheduler(sigma_min=0.5, sigma_max=8.0)
    scheduler.set_timesteps(5)
    clean, noise = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    noised = scheduler.add_noise(clean, noise, scheduler.timesteps[[1, 3]])
    torch.testing.assert_close(noised[0], clean[0] + 4 * noise[0])
    torch.testing.assert_close(noised[1], clean[1] + noise[1])
    assert torch.equal(
        scheduler.add_noise(clean, noise, scheduler.timesteps[1:2]), clean + noise * scheduler.sigmas[1].float()
    )
    half = scheduler.add_noise(clean.half(), noise.half(), scheduler.timesteps[:2])
    assert half.dtype == torch.float16


def test_begin_index():
    """A loop can start at any step, given by its first timestep or by the begin index."""
    outputs = []
    for begin in (None, 6):
        scheduler = AudioXDPMSolverSDEScheduler()
        scheduler.set_timesteps(10)
        assert scheduler.step_index is None and scheduler.begin_index is None
        if begin is not None:
            scheduler.set_begin_index(begin)
            assert scheduler.begin_index == 6
        sample = normal(2, 3)
        for i, timestep in enumerate(scheduler.timesteps[6:], 7):
            sample = scheduler.step(0.1 * sample, timestep, sample, variance_noise=normal(2, 3, seed=i)).prev_sample
            assert scheduler.step_index == i
        outputs.append(sample)
    assert torch.equal(*outputs)
    scheduler.set_timesteps(10)
    assert scheduler.begin_index is None


def test_set_timesteps_resets_the_steps():
    scheduler = AudioXDPMSolverSDEScheduler(eta=0.0)
    expected = full_loop(scheduler, normal(2, 3))
    scheduler.set_timesteps(10)
    for timestep in scheduler.timesteps[:4]:
        scheduler.step(normal(2, 3), timestep, normal(2, 3, seed=1))
    assert torch.equal(full_loop(scheduler, normal(2, 3)), expected)


# Known answers. In l = -log(sigma) the exact step is exp(-g) x + integral of exp(u - g) D over u in 0..g, with
# g = (1 + eta) h. For a D that is a polynomial in l it has a closed form.


def exact_step(sample, polynomial, sigma, next_sigma, eta):
    l = torch.linspace(-math.log(sigma), -math.log(next_sigma), 20001, dtype=torch.float64)
    weight = (1 + eta) * torch.exp((1 + eta) * (l - l[-1]))
    integral = torch.trapezoid(weight * polynomial(l), l)
    return sample * (next_sigma / sigma) ** (1 + eta) + integral


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("solver_order", "coefficients"),
    [(1, (0.7, 0, 0)), (2, (0.7, 0, 0)), (3, (0.7, 0, 0)), (3, (0.7, -1.3, 0)), (3, (0.7, -1.3, 0.4))],
)
def test_polynomials_are_integrated_exactly(eta, solver_order, coefficients):
    """
    With steps of any length, a polynomial of degree `n` is exact from the step with `n + 1` denoised samples on. Of the
    quadratic term, the released sampler counts half.
    """
    scheduler = AudioXDPMSolverSDEScheduler(eta=eta, solver_order=solver_order)
    scheduler.set_timesteps(sigmas=[5.0, 4.0, 2.5, 1.2, 0.9, 0.4])
    c0, c1, c2 = coefficients
    degree = max(i for i, c in enumerate(coefficients) if c)

    def polynomial(l):
        return c0 + c1 * l + c2 * l**2

    sample = torch.tensor([2.0])
    for i, timestep in enumerate(scheduler.timesteps[:-1]):
        sigma, next_sigma = scheduler.sigmas[i : i + 2].tolist()
        denoised = torch.tensor([polynomial(-math.log(sigma))])
        expected = exact_step(sample.double(), polynomial, sigma, next_sigma, eta).float()
        output = velocity_of(denoised, sample, sigma)
        sample = scheduler.step(output, timestep, sample, variance_noise=torch.zeros(1)).prev_sample
        h = math.log(sigma / next_sigma)
        g = h * (1 + eta)
        phi3 = (math.expm1(-g) / g + 1) / g - 0.5
        expected += phi3 * c2 * h**2
        if i >= degree:
            torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
        else:
            assert not torch.allclose(sample, expected, rtol=1e-4)


def test_order_2_is_the_midpoint_rule():
    """`(1 - exp(-g)) (D0 + slope / 2)` with the slope over one step."""
    scheduler = AudioXDPMSolverSDEScheduler(eta=0.4, solver_order=2)
    sigmas = [5.0, 3.0, 1.0]
    scheduler.set_timesteps(sigmas=sigmas)
    sample, first, second = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    zero = torch.zeros(2, 3)
    for sigma, denoised, timestep in zip(sigmas, (first, second), scheduler.timesteps):
        given, output = sample, velocity_of(denoised, sample, sigma)
        sample = scheduler.step(output, timestep, sample, variance_noise=zero).prev_sample
    decay = (1 / 3) ** 1.4
    slope = (second - first) * math.log(3) / math.log(5 / 3)
    torch.testing.assert_close(sample, decay * given + (1 - decay) * (second + slope / 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.25, 1.0])
def test_noise_level(eta):
    """The level of added noise is `s' sqrt(1 - (s' / s)^(2 eta))`."""
    outputs = []
    for noise in (torch.zeros(1), torch.ones(1)):
        scheduler = AudioXDPMSolverSDEScheduler(eta=eta)
        scheduler.set_timesteps(sigmas=[5.0, 2.0])
        outputs.append(scheduler.step(torch.ones(1), scheduler.timesteps[0], torch.ones(1), variance_noise=noise)[0])
    assert (outputs[1] - outputs[0]).item() == pytest.approx(2 * math.sqrt(1 - 0.4 ** (2 * eta)), rel=1e-5)


MEAN, STD = 0.8, 0.5


def sample_gaussian(scheduler, sample, steps, until_the_end=True, generator=None):
    """Run the loop with the optimal denoiser for normal data with `MEAN` and `STD`."""
    scheduler.set_timesteps(steps)
    for i, timestep in enumerate(scheduler.timesteps if until_the_end else scheduler.timesteps[:-1]):
        sigma = scheduler.sigmas[i].item()
        denoised = (STD**2 * sample.double() + sigma**2 * MEAN) / (STD**2 + sigma**2)
        output = velocity_of(denoised, sample.double(), sigma)
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
    return sample


@pytest.mark.parametrize("order", [1, 2, 3])
def test_converges_to_the_exact_trajectory(order):
    scheduler = AudioXDPMSolverSDEScheduler(sigma_min=0.1, sigma_max=20.0, eta=0.0, solver_order=order)
    start = MEAN + 20.0 * torch.tensor([-1.5, -0.4, 0.3, 1.0])
    exact = MEAN + (start - MEAN) * math.sqrt((STD**2 + 0.1**2) / (STD**2 + 20.0**2))
    errors = [(sample_gaussian(scheduler, start, n, False) - exact).abs().max().item() for n in (21, 41, 81)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    # With half the curvature, the third-order solver converges with order 2 and a smaller error.
    assert errors[-1] < {1: 0.02, 2: 2e-4, 3: 1e-4}[order]
    assert all({1: 0.9, 2: 1.7, 3: 2.1}[order] < found for found in orders)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_distribution_of_the_data(eta):
    scheduler = AudioXDPMSolverSDEScheduler(sigma_min=0.01, sigma_max=100.0, eta=eta)
    start = 100.0 * normal(40000)
    samples = sample_gaussian(scheduler, start, 60, generator=torch.Generator().manual_seed(1))
    # Four standard errors for this sample size, and the same again for the error of the steps.
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert samples.std().item() == pytest.approx(STD, rel=0.03)


def test_velocity_denoises_to_the_given_sample():
    scheduler = AudioXDPMSolverSDEScheduler()
    scheduler.set_timesteps(5)
    clean, noise = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for begin, timestep in enumerate(scheduler.timesteps):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(begin)
        sigma = scheduler.sigmas[begin].item()
        sample = 3 * clean + noise * sigma
        velocity = scheduler.velocity(clean, sample, timestep)
        torch.testing.assert_close(scheduler.denoise(velocity, sample, sigma), clean, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        scheduler.step(velocity, timestep, sample).prev_sample, scheduler.denoise(velocity, sample, sigma)
    )
