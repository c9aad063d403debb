"""Training losses of few-step students: distribution matching, and consistency."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator

from ..data.batches import Batch
from ..data.seeds import generator_for
from ..objective import RectifiedFlowObjective, TimestepSampler, VelocityObjective
from ..run.optimizer_state import load_optimizer, optimizer_state
from ..run.state_files import check_like
from ..strategy import DiffusionStrategy, NextBatch
from .losses import (
    Predict,
    consistency_loss,
    distribution_matching_loss,
    fake_score_loss,
    ode_regression_loss,
    predict_clean,
    roll_out,
    teacher_path,
)
from .networks import FullNetworks
from .ode_pairs import OdePairs
from .settings import DistillationSettings

# Shortest distance from clean data and from pure noise at which teacher and fake score are compared (DMD2's).
MARGIN = 0.02


class DistillationStrategy(DiffusionStrategy):
    """
    Base of both methods: conditions, networks and draws.

    All networks get the context that the teacher's conditioner computes from one draw of masks. Every draw depends on
    the seed and the number of the sample or step alone, so a resumed run and any number of processes draw the same.

    Args:
        objective: The teacher's path from data to noise.
        timesteps: Draws the times of the loss.
        encode: Returns the context of a batch, `[B, tokens, width]`.
        networks: Teacher, student and companion.
        settings: See [`DistillationSettings`].
    """

    def __init__(
        self,
        objective: VelocityObjective | RectifiedFlowObjective,
        timesteps: TimestepSampler,
        encode: Callable[[Batch], torch.Tensor],
        networks: FullNetworks,
        settings: DistillationSettings,
    ):
        super().__init__(objective, timesteps)
        self.encode = torch.no_grad()(encode)
        self.networks = networks
        self.settings = settings
        self._metrics: dict[str, torch.Tensor] = {}

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.networks.to(accelerator.device)

    def metrics(self) -> dict[str, torch.Tensor]:
        return self._metrics

    def _noise(self, purpose: str, first_sample: int, latents: torch.Tensor) -> torch.Tensor:
        """Draw unit noise like `latents`, by the number of each sample."""
        seed, shape = self.settings.seed, latents.shape[1:]
        rows = [
            torch.randn(shape, generator=generator_for(seed, purpose, first_sample + row))
            for row in range(len(latents))
        ]
        return torch.stack(rows).to(latents.device)

    def _times(self, first_sample: int, count: int, device: torch.device) -> torch.Tensor:
        """Draw the times at which teacher and fake score are compared, `[B]`."""
        highest = min(1 - MARGIN, self.settings.timesteps[0])
        return MARGIN + (highest - MARGIN) * self.timesteps.sample(first_sample, count).to(device)


class DistributionMatchingStrategy(DistillationStrategy):
    """
    Distribution matching distillation (DMD2, arXiv 2405.14867): before each update of the student, the fake score learns
    the student's samples. Optionally ODE regression comes first.

    The input of the student's step `k` is its own sample after `k - 1` steps. The number `k` is drawn once for each
    update, so that all processes take equally long.
    """

    def __init__(self, *args: Any, pairs: OdePairs | None = None):
        super().__init__(*args)
        settings = self.settings
        self.pairs = pairs
        self.step = self._batches = 0
        self._optimizer = torch.optim.AdamW(
            self.networks.companion_parameters().values(),
            lr=settings.companion_learning_rate,
            betas=settings.adam_betas,
            eps=settings.adam_epsilon,
            weight_decay=settings.adam_weight_decay,
        )

    def before_step(self, model: nn.Module, next_batch: NextBatch) -> None:
        """Update the fake score."""
        self._metrics, self._batches = {}, 0
        if self.step >= self.settings.ode_steps:
            updates = range(self.settings.companion_updates)
            losses = [self._update_fake_score(model, next_batch, f"fake {number}") for number in updates]
            self._metrics["fake_loss"] = torch.stack(losses).mean()
        self.step += 1

    def loss(self, model: nn.Module, batch: Batch, first_sample: int) -> torch.Tensor:
        """Return the student's loss of each sample, `[B]`. The value of the distribution matching loss has no meaning."""
        context = self.encode(batch)
        if self.step <= self.settings.ode_steps:
            return self._ode_loss(model, batch, context, first_sample)
        sample = self._student_sample(model, batch, context, first_sample, "student")
        loss, metrics = distribution_matching_loss(
            self.objective,
            sample,
            self.networks.teacher(context),
            self.networks.companion(context),
            self._times(first_sample, len(sample), sample.device),
            self._noise("compare", first_sample, sample),
        )
        self._metrics |= metrics
        return loss

    def _student_sample(
        self, model: nn.Module, batch: Batch, context: torch.Tensor, first_sample: int, update: str
    ) -> torch.Tensor:
        """
        Return the student's `x0` after a number of steps that is drawn for each update, with gradient through the last.
        """
        timesteps, student = self.settings.timesteps, _with_context(model, context)
        generator = generator_for(self.settings.seed, "student steps", self.step, update)
        count = int(torch.randint(len(timesteps), (), generator=generator)) + 1
        noises = [self._noise(f"student {index}", first_sample, batch.latents) for index in range(count)]
        noised = roll_out(self.objective, student, timesteps[:count], noises)
        time = noised.new_full((len(noised),), timesteps[count - 1])
        return predict_clean(self.objective, student, noised, time)

    def _update_fake_score(self, model: nn.Module, next_batch: NextBatch, update: str) -> torch.Tensor:
        """Take one optimizer step of the fake score and return its loss."""
        settings, total = self.settings, 0.0
        for _ in range(settings.accumulation_steps):
            batch, first_sample = next_batch()
            context = self.encode(batch)
            with torch.no_grad():
                sample = self._student_sample(model, batch, context, first_sample, update)
            time = self._times(first_sample, len(sample), sample.device)
            noise = self._noise("fake", first_sample, sample)
            with self.networks.training_companion():
                loss = fake_score_loss(self.objective, sample, self.networks.companion(context), time, noise)
                loss = loss.mean() / settings.accumulation_steps
                loss.backward()
            total += loss.detach()
        parameters = list(self.networks.companion_parameters().values())
        for parameter in parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _ode_loss(self, model: nn.Module, batch: Batch, context: torch.Tensor, first_sample: int) -> torch.Tensor:
        settings = self.settings

        def make() -> dict[str, torch.Tensor]:
            noise, teacher = self._noise("path", first_sample, batch.latents), self.networks.teacher(context)
            path = teacher_path(self.objective, teacher, settings.timesteps, noise, settings.teacher_steps)
            return {"path": path, "context": context}

        pair = self.pairs.get((self.step - 1) * settings.accumulation_steps + self._batches, make)
        self._batches += 1
        path, context = (pair[name].to(batch.latents.device) for name in ("path", "context"))
        return ode_regression_loss(self.objective, _with_context(model, context), path, settings.timesteps)

    def state_dict(self) -> dict[str, Any]:
        parameters = self.networks.companion_parameters()
        return {
            "step": self.step,
            "companion": {name: parameter.detach() for name, parameter in parameters.items()},
            "optimizer": optimizer_state(self._optimizer),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_like({**state, "optimizer": None}, {**self.state_dict(), "optimizer": None}, "strategy")
        load_optimizer(self._optimizer, state["optimizer"])
        self.step = state["step"]
        for name, parameter in self.networks.companion_parameters().items():
            parameter.copy_(state["companion"][name])


class ConsistencyStrategy(DistillationStrategy):
    """
    Consistency distillation (arXiv 2303.01469), guided as latent consistency models (arXiv 2310.04378). The companion is
    the student's moving average.
    """

    def before_step(self, model: nn.Module, next_batch: NextBatch) -> None:
        """Let the moving average follow the student."""
        student, decay = self.networks.student_parameters(), self.settings.average_decay
        with torch.no_grad():
            for name, parameter in self.networks.companion_parameters().items():
                parameter.lerp_(student[name], 1 - decay)

    def loss(self, model: nn.Module, batch: Batch, first_sample: int) -> torch.Tensor:
        context, latents = self.encode(batch), batch.latents
        timestep = self._times(first_sample, len(latents), latents.device)
        companion = self.networks.companion(context)
        return consistency_loss(
            self.objective,
            latents,
            batch.noise,
            timestep,
            (timestep - 1 / self.settings.teacher_steps).clamp(min=0),
            _with_context(model, context),
            companion,
            self.networks.teacher(context),
        )

    def state_dict(self) -> dict[str, Any]:
        parameters = self.networks.companion_parameters()
        return {"companion": {name: parameter.detach() for name, parameter in parameters.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_like(state, self.state_dict(), "strategy")
        for name, parameter in self.networks.companion_parameters().items():
            parameter.copy_(state["companion"][name])


def _with_context(model: nn.Module, context: torch.Tensor) -> Predict:
    def predict(noised: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return model(noised, timestep, context)

    return predict
