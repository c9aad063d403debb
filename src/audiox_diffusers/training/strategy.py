"""Training loss. Subclass it for other objectives."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator

from .data.batches import Batch
from .objective import RectifiedFlowObjective, TimestepSampler, VelocityObjective, diffusion_loss

# Returns the next batch, and the number of its first sample.
NextBatch = Callable[[], tuple[Batch, int]]


class DiffusionStrategy:
    """
    The loss of diffusion training: noise the latents to drawn timesteps, predict the velocity, compare.

    Args:
        objective: Path from data to noise.
        timesteps: Draws the timesteps.
        snr_gamma: Gamma of the min-SNR weight, `None` for no weight.
    """

    def __init__(
        self,
        objective: VelocityObjective | RectifiedFlowObjective,
        timesteps: TimestepSampler,
        snr_gamma: float | None = None,
    ):
        self.objective = objective
        self.timesteps = timesteps
        self.snr_gamma = snr_gamma

    def loss(self, model: nn.Module, batch: Batch, first_sample: int) -> torch.Tensor:
        """
        Return the loss of each sample, `[B]`, float32.

        Args:
            model: An [`AudioXTrainingModel`], wrapped or not.
            batch: Batch to train on.
            first_sample: Number of the batch's first sample, counted over all processes and steps.
        """
        timestep = self.timesteps.sample(first_sample, len(batch.latents)).to(batch.latents.device)
        noised = self.objective.add_noise(batch.latents, batch.noise, timestep)
        prediction = model(noised, timestep, batch)
        target = self.objective.target(batch.latents, batch.noise, timestep)
        weight = None if self.snr_gamma is None else self.objective.loss_weight(timestep, self.snr_gamma)
        return diffusion_loss(prediction, target, weight)

    def prepare(self, accelerator: Accelerator) -> None:
        """Move further networks to the device."""

    def before_step(self, model: nn.Module, next_batch: NextBatch) -> None:
        """Train further networks before a step of the model."""

    def metrics(self) -> dict[str, torch.Tensor]:
        """Return further metrics of the last step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resume needs, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
