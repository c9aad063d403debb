"""
Distillation of a conditional mixture of two Gaussians in four dimensions, whose velocity is known in closed form. The
teacher is exact, and the student's samples must have the mixture's shares, means and covariance.
"""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn as nn
from accelerate import Accelerator
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.training_utils import EMAModel
from peft import LoraConfig

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from audiox_diffusers.training.distillation.networks import AdapterNetworks, FullNetworks
from audiox_diffusers.training.distillation.settings import DistillationSettings
from audiox_diffusers.training.distillation.strategies import ConsistencyStrategy, DistributionMatchingStrategy
from audiox_diffusers.training.objective import RectifiedFlowObjective, TimestepSampler, VelocityObjective

DIMENSIONS, BATCH = 4, 256
CENTRES = torch.tensor([[1.5, 0.0, -1.0, 0.5], [-1.0, 1.0, 1.0, -0.5]])
DEVIATION = 0.4
# Share of the first Gaussian for each condition.
SHARES = torch.tensor([0.75, 0.35])
TIME_CENTRES = torch.linspace(0, 1, 6)
FLOW_TIMES = [0.98, 0.75, 0.5, 0.25]
PATHS = {
    "cosine": (
        VelocityObjective(),
        AudioXDPMSolverSDEScheduler,
        [math.atan(time / (1 - time)) * 2 / math.pi for time in FLOW_TIMES],
    ),
    "flow": (RectifiedFlowObjective(), AudioXFlowMatchScheduler, FLOW_TIMES),
}


class Mixture(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The exact velocity of the mixture, plus a network that starts at zero."""

    @register_to_config
    def __init__(self, path: str = "flow", width: int = 64):
        super().__init__()
        self.first = nn.Linear((DIMENSIONS + 2) * len(TIME_CENTRES), width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, DIMENSIONS)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, noised, timestep, condition_embeds, return_dict=True):
        objective, _, _ = PATHS[self.config.path]
        x, condition = noised[..., 0], condition_embeds[:, 0]
        alpha, sigma = (level[:, None] for level in objective.levels(timestep))
        variance = (alpha * DEVIATION) ** 2 + sigma**2
        offsets = x[:, None] - alpha[:, None] * CENTRES
        share = condition * SHARES[1] + (1 - condition) * SHARES[0]
        prior = torch.cat((share, 1 - share), dim=1).log()
        posterior = (prior - offsets.pow(2).sum(-1) / (2 * variance)).softmax(dim=1)
        clean = posterior[..., None] * (CENTRES + (alpha * DEVIATION**2 / variance)[:, None] * offsets)
        clean = clean.sum(dim=1)
        exact = objective.target(clean, (x - alpha * clean) / sigma.clamp(min=1e-4), timestep)
        # Each time has its own part of the input, so that the steps do not disturb each other.
        at_time = (-((timestep[:, None] - TIME_CENTRES) ** 2) / 0.02).softmax(dim=1)
        inputs = torch.cat((x, condition, torch.ones_like(condition)), dim=1)
        hidden = (inputs[:, :, None] * at_time[:, None]).flatten(1)
        learned = self.last(torch.tanh(self.second(torch.tanh(self.first(hidden)))))
        return ((exact + learned)[..., None],)


@dataclass
class Batch:
    latents: torch.Tensor
    noise: torch.Tensor
    context: torch.Tensor


def draw_batch(generator) -> Batch:
    context = torch.randint(2, (BATCH, 1, 1), generator=generator).float()
    first = torch.rand(BATCH, generator=generator) < SHARES[context.flatten().long()]
    centres = torch.where(first[:, None], CENTRES[0], CENTRES[1])
    latents = centres + DEVIATION * torch.randn(BATCH, DIMENSIONS, generator=generator)
    noise = torch.randn(BATCH, DIMENSIONS, 1, generator=generator)
    return Batch(latents[..., None], noise, context)


def distill(
    path: str,
    storage: str,
    steps: int = 400,
    fake_learning_rate: float = 4e-3,
    method: type = DistributionMatchingStrategy,
) -> nn.Module:
    """Distill the exact teacher, and return the student."""
    torch.manual_seed(0)
    objective, _, times = PATHS[path]
    transformer = Mixture(path)
    if storage == "full":
        networks = FullNetworks(transformer, guidance_scale=1.0)
    else:
        config = LoraConfig(r=32, lora_alpha=64, target_modules=["first", "second", "last"])
        networks = AdapterNetworks(transformer, config, seed=0, guidance_scale=1.0)
    settings = DistillationSettings(
        timesteps=tuple(times),
        seed=0,
        accumulation_steps=1,
        companion_updates=5,
        companion_learning_rate=fake_learning_rate,
        adam_betas=(0.5, 0.99),
        adam_epsilon=1e-8,
        adam_weight_decay=0.0,
        max_grad_norm=10.0,
        ode_steps=0,
        teacher_steps=25,
        average_decay=0.95,
    )
    generator, number = torch.Generator().manual_seed(1), 0

    def next_batch():
        nonlocal number
        number += 1
        return draw_batch(generator), number * BATCH

    class Fast(method):
        """Draws noise for a whole batch at once."""

        def _noise(self, purpose, first_sample, latents):
            return torch.randn(latents.shape, generator=generator)

    strategy = Fast(objective, TimestepSampler(), lambda batch: batch.context, networks, settings)
    strategy.prepare(Accelerator(cpu=True))
    trained = [parameter for parameter in networks.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-3 if storage == "full" else 4e-3, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = EMAModel(trained, decay=0.98)
    for _ in range(steps):
        strategy.before_step(networks.model, next_batch)
        strategy.loss(networks.model, *next_batch()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.step(trained)
    average.copy_to(trained)
    return networks.model.transformer.eval()


@torch.no_grad()
def largest_errors(path: str, model: nn.Module, steps: int = 4) -> dict[str, float]:
    """Sample with the few-step scheduler, and return the largest errors over both conditions."""
    _, scheduler_class, times = PATHS[path]
    errors = {"share": 0.0, "mean": 0.0, "covariance": 0.0}
    for condition in (0, 1):
        scheduler = scheduler_class(stochastic_sampling=True, distilled_timesteps=times)
        scheduler.set_timesteps(steps)
        generator, count = torch.Generator().manual_seed(2), 8000
        first = scheduler.add_noise(
            torch.zeros(count, DIMENSIONS, 1), torch.ones(count, 1, 1), scheduler.timesteps[:1]
        )
        sample = first * torch.randn(count, DIMENSIONS, 1, generator=generator)
        context = torch.full((count, 1, 1), float(condition))
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, time)
            velocity = model(scaled, time.expand(count), context)[0]
            sample = scheduler.step(velocity, time, sample, generator=generator).prev_sample
        share = SHARES[condition].item()
        sample, weights = sample[..., 0], torch.tensor([share, 1 - share])
        nearest = torch.cdist(sample, CENTRES).argmin(dim=1)
        mean = weights @ CENTRES
        between = (CENTRES - mean).T @ torch.diag(weights) @ (CENTRES - mean)
        covariance = between + DEVIATION**2 * torch.eye(DIMENSIONS)
        found = {
            "share": ((nearest == 0).float().mean() - share).abs().item(),
            "mean": (sample.mean(dim=0) - mean).abs().max().item(),
            "covariance": (sample.T.cov() - covariance).abs().max().item(),
        }
        errors = {name: max(errors[name], found[name]) for name in errors}
    return errors


BOUNDS = {
    "full": {"share": 0.05, "mean": 0.2, "covariance": 0.55},
    "adapter": {"share": 0.06, "mean": 0.35, "covariance": 0.6},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("storage", BOUNDS)
def test_distribution_matching_finds_the_distribution(path, storage):
    errors, bounds = largest_errors(path, distill(path, storage)), BOUNDS[storage]
    assert all(errors[name] < bounds[name] for name in bounds), errors


@pytest.mark.parametrize("path", PATHS)
def test_the_teacher_and_a_student_without_fake_score_do_not(path):
    teacher = largest_errors(path, Mixture(path))
    for bounds in BOUNDS.values():
        assert teacher["share"] > bounds["share"] and teacher["covariance"] > bounds["covariance"]
    assert largest_errors(path, distill(path, "full", steps=20, fake_learning_rate=0.0)) == teacher


@pytest.mark.parametrize("path", PATHS)
def test_consistency_comes_closer_than_the_teacher(path):
    teacher, student = (
        largest_errors(path, model) for model in (Mixture(path), distill(path, "full", method=ConsistencyStrategy))
    )
    assert all(student[name] < 0.85 * teacher[name] for name in teacher), (teacher, student)
