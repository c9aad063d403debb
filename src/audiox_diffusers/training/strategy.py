"""Training loss. Subclass it for other objectives."""

import torch
import torch.nn as nn

from .data.batches import Batch
from .objective import RectifiedFlowObjective, TimestepSampler, VelocityObjective, diffusion_loss


class DiffusionStrategy:
    """
    The loss of diffusion training: noise the latents to drawn times, predict the velocity, compare.

    Args:
        objective: the path from data to noise.
        timesteps: draws the times.
        snr_gamma: of the min-SNR weight, `None` for none.
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
        Args:
            model: an [`AudioXTrainingModel`], wrapped or not.
            batch: what to train on.
            first_sample: number of the batch's first sample, counted over all processes and steps.

        Returns:
            The loss of each sample, `[B]`, float32.
        """
        timestep = self.timesteps.sample(first_sample, len(batch.latents)).to(batch.latents.device)
        noised = self.objective.add_noise(batch.latents, batch.noise, timestep)
        prediction = model(noised, timestep, batch)
        target = self.objective.target(batch.latents, batch.noise, timestep)
        weight = None if self.snr_gamma is None else self.objective.loss_weight(timestep, self.snr_gamma)
        return diffusion_loss(prediction, target, weight)
