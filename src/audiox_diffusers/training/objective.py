"""Training objectives: the path from data to noise, the target of the network, and the timesteps."""

import math

import torch
from diffusers import CosineDPMSolverMultistepScheduler
from torch.quasirandom import SobolEngine

from ..schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler

# Smallest distance of a timestep from clean data (0) and pure noise (1).
MIN_TIME = 1e-5


class VelocityObjective:
    """
    v-prediction on the cosine path (arXiv 2202.00512, appendix D).

    `x_t = alpha x0 + sigma noise` and `v = alpha noise - sigma x0`, with `alpha = cos(pi t / 2)` and
    `sigma = sin(pi t / 2)`.
    """

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return `x_t`, `[B, ...]`, for clean latents and unit noise `[B, ...]` and timesteps `[B]` in 0..1."""
        alpha, sigma = self.levels(_per_sample(timestep, latents))
        return alpha * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the velocity to predict, `[B, ...]`. The arguments are those of `add_noise`."""
        alpha, sigma = self.levels(_per_sample(timestep, latents))
        return alpha * noise - sigma * latents

    def split(
        self, velocity: torch.Tensor, noised: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clean latents and the noise, each `[B, ...]`, that make up `noised` at this velocity."""
        alpha, sigma = self.levels(_per_sample(timestep, noised))
        return alpha * noised - sigma * velocity, sigma * noised + alpha * velocity

    def loss_weight(self, timestep: torch.Tensor, snr_gamma: float) -> torch.Tensor:
        """
        Return the min-SNR-gamma weight (arXiv 2303.09556) of the velocity's squared error, `[B]`.

        The error of `x0` is `sigma` times that of `v`, and the SNR is `alpha^2 / sigma^2`. So the weight
        `min(SNR, gamma)` on `x0` becomes `min(SNR, gamma) sigma^2 = min(alpha^2, gamma sigma^2)` on `v`, which is also
        `min(SNR, gamma) / (SNR + 1)`.
        """
        alpha, sigma = self.levels(timestep)
        return torch.minimum(alpha**2, snr_gamma * sigma**2)

    @staticmethod
    def levels(timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of clean latents and noise at these timesteps."""
        angle = timestep * (math.pi / 2)
        return angle.cos(), angle.sin()


class RectifiedFlowObjective:
    """Rectified flow (arXiv 2209.03003): `x_t = (1 - t) x0 + t noise` and the velocity `v = noise - x0`."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return `x_t`, `[B, ...]`, for clean latents and unit noise `[B, ...]` and timesteps `[B]` in 0..1."""
        alpha, sigma = self.levels(_per_sample(timestep, latents))
        return alpha * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the velocity to predict, `[B, ...]`. It is the same at every timestep."""
        return noise - latents

    def split(
        self, velocity: torch.Tensor, noised: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clean latents and the noise, each `[B, ...]`, that make up `noised` at this velocity."""
        time = _per_sample(timestep, noised)
        return noised - time * velocity, noised + (1 - time) * velocity

    @staticmethod
    def levels(timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of clean latents and noise at these timesteps."""
        return 1 - timestep, timestep

    def loss_weight(self, timestep: torch.Tensor, snr_gamma: float) -> torch.Tensor:
        """
        Return the min-SNR-gamma weight (arXiv 2303.09556) of the velocity's squared error, `[B]`.

        The error of `x0` is `t` times that of `v`, and the SNR is `((1 - t) / t)^2`. So the weight `min(SNR, gamma)` on
        `x0` becomes `min(SNR, gamma) t^2 = min((1 - t)^2, gamma t^2)` on `v`.
        """
        return torch.minimum((1 - timestep) ** 2, snr_gamma * timestep**2)


def _per_sample(timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Reshape timesteps `[B]` to broadcast with `latents`."""
    return timestep.view(-1, *(1,) * (latents.ndim - 1))


def objective_for(scheduler) -> VelocityObjective | RectifiedFlowObjective:
    """
    Return the training objective of the models that a scheduler samples from.

    Raises:
        ValueError: `scheduler` is not one of the schedulers of AudioX.
    """
    if isinstance(scheduler, AudioXFlowMatchScheduler):
        return RectifiedFlowObjective()
    if isinstance(scheduler, (AudioXDPMSolverSDEScheduler, CosineDPMSolverMultistepScheduler)):
        return VelocityObjective()
    raise ValueError(
        "`scheduler` must be AudioXDPMSolverSDEScheduler, CosineDPMSolverMultistepScheduler or"
        f" AudioXFlowMatchScheduler, got {type(scheduler).__name__}."
    )


def diffusion_loss(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared error of each sample of `[B, ...]`, times its `weight` `[B]`: `[B]`, float32."""
    loss = (prediction.float() - target.float()).pow(2).flatten(1).mean(1)
    return loss if weight is None else loss * weight


class TimestepSampler:
    """
    Draws timesteps from one scrambled Sobol sequence, which covers 0..1 more evenly than independent draws.

    A timestep depends on its number in the sequence alone, so a resumed run and any number of processes draw the same.

    Args:
        distribution: `"uniform"`, or `"logit_normal"` (arXiv 2403.03206, section 3.1), the sigmoid of a normal draw.
        seed: Seed of the scrambling.
        logit_mean, logit_std: Mean and standard deviation of the normal draw.

    Raises:
        ValueError: `distribution` is not one of the two.
    """

    def __init__(self, distribution: str = "uniform", seed: int = 0, logit_mean: float = 0.0, logit_std: float = 1.0):
        if distribution not in ("uniform", "logit_normal"):
            raise ValueError(f"`distribution` must be 'uniform' or 'logit_normal', got {distribution!r}.")
        self.distribution = distribution
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self._engine = SobolEngine(1, scramble=True, seed=seed)

    def sample(self, first: int, count: int) -> torch.Tensor:
        """Return timesteps `first` to `first + count - 1`: `[count]`, float32, in 1e-5..1 - 1e-5, on the CPU."""
        time = self._uniform(first, count)
        if self.distribution == "logit_normal":
            time = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(time))
        return time.clamp(MIN_TIME, 1 - MIN_TIME).to(torch.float32)

    def _uniform(self, first: int, count: int) -> torch.Tensor:
        """Return points of the sequence, `[count]`, float64, above 0 and below 1."""
        # The engine has this many points and returns numbers outside 0..1 after them, so start over.
        period = 2**SobolEngine.MAXBIT
        first %= period
        if first + count > period:
            return torch.cat((self._uniform(first, period - first), self._uniform(0, first + count - period)))
        # Skipping points takes time, so continue after the last draw if possible.
        if first < self._engine.num_generated:
            self._engine.reset()
        if first > self._engine.num_generated:
            self._engine.fast_forward(first - self._engine.num_generated)
        # Points are the lower ends of cells of width 1 / period. Their centers are never 0 or 1.
        return self._engine.draw(count, dtype=torch.float64).squeeze(1) + 0.5 / period
