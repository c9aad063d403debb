"""Third-order DPM-Solver++ SDE, the sampler of the released AudioX models."""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from .step_index import StepIndexMixin

# Noise levels whose squares and quotients float32 can hold.
MIN_SIGMA, MAX_SIGMA = 1e-6, 1e6


class AudioXDPMSolverSDEScheduler(StepIndexMixin, SchedulerMixin, ConfigMixin):
    r"""
    DPM-Solver++(3M) SDE for a v-prediction model, in variance-exploding coordinates: a sample at noise level `s` is
    `x = x0 + s * noise` (EDM, arXiv 2206.00364, section 5; v-prediction, arXiv 2202.00512, appendix D).

    - The model input is `x / sqrt(s^2 + 1)` ([`~AudioXDPMSolverSDEScheduler.scale_model_input`]), with the time
      `t = atan(s) * 2 / pi` in 0..1.
    - The model output `v` gives `x0 = x / (s^2 + 1) - v * s / sqrt(s^2 + 1)`.
    - `num_inference_steps` levels decrease exponentially from `sigma_max` to `sigma_min`. The last step goes to 0.

    The solver is the third-order multistep solver of DPM-Solver++ (arXiv 2211.01095, section 4 and appendix) for the
    reverse SDE, with one model call per step. With `l = -log s`, `h = l[i+1] - l[i]`, `g = h (1 + eta)`, and the
    denoised samples `D0, D1, D2` of this step and the two steps before, at distances `h1` and `h2`:

    `x' = exp(-g) x + (1 - exp(-g)) D0 + phi2 d1 - phi3 d2 + s' sqrt(1 - exp(-2 h eta)) noise`,
    `phi2 = expm1(-g) / g + 1`, `phi3 = phi2 / g - 1/2`,
    `a = (D0 - D1) h / h1`, `b = (D1 - D2) h / h2`, `d2 = (a - b) h / (h1 + h2)`, `d1 = a + d2 h1 / h`.

    No diffusers scheduler computes this: `DPMSolverMultistepScheduler` has a different coefficient in its third-order
    SDE, and `CosineDPMSolverMultistepScheduler` stops at order 2. The original draws noise from a Brownian tree, whose
    increments over disjoint intervals are independent normals. This scheduler draws independent normals.

    With `stochastic_sampling`, a step is that of a few-step model instead: it denoises, and adds new noise of the next
    level, `x' = D0 + s' * noise` (multistep sampling of consistency models, arXiv 2303.01469, algorithm 1).

    Parameters:
        sigma_min (`float`): Last noise level before 0. The released models use 0.3, or 0.03 with 100 steps.
        sigma_max (`float`): First noise level.
        eta (`float`): Amount of noise to add at each step, from 0 (deterministic) to 1.
        solver_order (`int`): 1, 2 or 3. Order 2 is the midpoint variant of DPM-Solver++(2M) SDE.
        num_train_timesteps (`int`): Number of levels before the first call of `set_timesteps`.
        stochastic_sampling (`bool`): Whether to denoise and renoise instead of solving the SDE. `eta` and
            `solver_order` then do not matter.
        distilled_timesteps (`list[float]`, *optional*): Times `t` that a few-step model was distilled for, decreasing,
            above 0 and below 1. `set_timesteps` then selects among them, and allows no more steps.

    Attributes:
        sigmas (`torch.Tensor` of shape `[N + 1]`): Noise levels and the final 0, float64, on the CPU.
        timesteps (`torch.Tensor` of shape `[N]`): Time of each model call, float32.
    """

    _compatibles = []
    order = 1

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.3,
        sigma_max: float = 500.0,
        eta: float = 1.0,
        solver_order: int = 3,
        num_train_timesteps: int = 1000,
        stochastic_sampling: bool = False,
        distilled_timesteps: list[float] | None = None,
    ):
        levels = {"sigma_min": (sigma_min, MIN_SIGMA, MAX_SIGMA), "sigma_max": (sigma_max, MIN_SIGMA, MAX_SIGMA)}
        self._check_config(num_train_timesteps, eta=(eta, 0, 1), **levels)
        if sigma_min >= sigma_max:
            raise ValueError(f"`sigma_min` must be below `sigma_max`, got {sigma_min} and {sigma_max}.")
        if solver_order not in (1, 2, 3):
            raise ValueError(f"`solver_order` must be 1, 2 or 3, got {solver_order}.")
        self._check_distilled_timesteps(distilled_timesteps, highest=math.atan(MAX_SIGMA) * 2 / math.pi)
        self.set_timesteps(num_train_timesteps if distilled_timesteps is None else len(distilled_timesteps))

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise."""
        return self.sigmas[0].item()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """
        Set the noise levels and reset the steps. Call this before sampling.

        Args:
            num_inference_steps (`int`, *optional*): Number of levels, at least 1. With `distilled_timesteps` at most
                their number.
            device (`str` or `torch.device`, *optional*): Device of `timesteps`.
            sigmas (`list[float]`, *optional*): Custom levels, decreasing and positive, instead of
                `num_inference_steps`.

        Raises:
            ValueError: If both or neither of `num_inference_steps` and `sigmas` are given, or are out of range.
        """
        self._check_schedule(num_inference_steps, sigmas)
        if sigmas is None and self.config.distilled_timesteps is not None:
            levels = (self._distilled_times(num_inference_steps) * math.pi / 2).tan()
        elif sigmas is None:
            log_max, log_min = math.log(self.config.sigma_max), math.log(self.config.sigma_min)
            levels = torch.linspace(log_max, log_min, num_inference_steps, dtype=torch.float64).exp()
        else:
            levels = self._as_levels(sigmas)
            in_range = (levels >= MIN_SIGMA) & (levels <= MAX_SIGMA)
            if levels.ndim != 1 or not len(levels) or not in_range.all() or not (levels.diff() < 0).all():
                raise ValueError(f"`sigmas` must be decreasing numbers in {MIN_SIGMA:g}..{MAX_SIGMA:g}, got {sigmas}.")

        self.num_inference_steps = len(levels)
        self.sigmas = torch.cat((levels, levels.new_zeros(1)))
        self.timesteps = (levels.atan() * 2 / math.pi).to(torch.float32).to(device)
        self._step_index = None
        self._begin_index = None
        self._denoised: list[torch.Tensor] = []
        self._log_steps: list[float] = []

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """Return the model input `sample / sqrt(s^2 + 1)`, with the shape and dtype of `sample`."""
        self._init_step_index(timestep)
        sigma = self.sigmas[self._step_index].item()
        return sample / math.sqrt(sigma**2 + 1)

    def denoise(self, model_output: torch.Tensor, sample: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return the denoised sample `x0 = x / (s^2 + 1) - v * s / sqrt(s^2 + 1)`."""
        return sample / (sigma**2 + 1) - model_output * (sigma / math.sqrt(sigma**2 + 1))

    def velocity(self, denoised: torch.Tensor, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """
        Return the velocity with which [`~AudioXDPMSolverSDEScheduler.step`] denoises `sample` to `denoised`:
        `v = (x / (s^2 + 1) - x0) sqrt(s^2 + 1) / s`. With this velocity at every step, the sample stays
        `x0 + s * noise` with unit noise at each level `s`, and ends as `x0`.

        Args:
            denoised, sample (`torch.Tensor` of shape `[B, ...]`): Denoised and current sample, float32.
            timestep (`float` or scalar `torch.Tensor`): Time of the current level.
        """
        self._init_step_index(timestep)
        sigma = self.sigmas[self._step_index].item()
        return (sample / (sigma**2 + 1) - denoised) * (math.sqrt(sigma**2 + 1) / sigma)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Add noise at the levels of the schedule closest to `timesteps`.

        Args:
            original_samples, noise (`torch.Tensor` of shape `[B, ...]`): Clean samples, and unit noise.
            timesteps (`torch.Tensor` of shape `[B]`): Times in 0..1.

        Returns:
            `original_samples + sigma * noise`, in variance-exploding coordinates.
        """
        return original_samples + noise * self._levels_for(timesteps, original_samples)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        r"""
        Compute the sample at the next noise level.

        Args:
            model_output (`torch.Tensor` of shape `[B, ...]`): Predicted velocity, with or without guidance.
            timestep (`float` or scalar `torch.Tensor`): Time of the current level, one of `timesteps`.
            sample (`torch.Tensor` of shape `[B, ...]`): Current sample, in variance-exploding coordinates. Keep it in
                float32, because the first levels are hundreds of times larger than the final sample.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): One generator, or one per sample.
            variance_noise (`torch.Tensor` of shape `[B, ...]`, *optional*): Unit noise to use instead of drawing it.
            return_dict (`bool`): Whether to return a [`~schedulers.scheduling_utils.SchedulerOutput`].

        Returns:
            The sample at the next level, in the dtype of `sample`. The last step returns the denoised sample.
        """
        self._check_shapes(model_output, sample)
        sigma, next_sigma = self._next_levels(timestep)

        dtype, sample = sample.dtype, sample.float()
        denoised = self.denoise(model_output.float(), sample, sigma)
        if next_sigma == 0:
            prev_sample = denoised
        elif self.config.stochastic_sampling:
            prev_sample = denoised + next_sigma * self._unit_noise(sample, generator, variance_noise)
        else:
            log_step = math.log(sigma / next_sigma)
            prev_sample = self._solve(sample, denoised, log_step)
            if self.config.eta > 0:
                noise_level = next_sigma * math.sqrt(-math.expm1(-2 * log_step * self.config.eta))
                prev_sample = prev_sample + noise_level * self._unit_noise(sample, generator, variance_noise)
            self._denoised = [denoised, *self._denoised][: self.config.solver_order - 1]
            self._log_steps = [log_step, *self._log_steps][: self.config.solver_order - 1]

        prev_sample = prev_sample.to(dtype)
        if not return_dict:
            return (prev_sample,)
        return SchedulerOutput(prev_sample=prev_sample)

    def _solve(self, sample: torch.Tensor, denoised: torch.Tensor, log_step: float) -> torch.Tensor:
        """Compute the deterministic part of the step, at the highest order that the previous steps allow."""
        order = min(self.config.solver_order, len(self._denoised) + 1)
        g = log_step * (1 + self.config.eta)
        decay = math.exp(-g)
        result = decay * sample + (1 - decay) * denoised
        if order == 1:
            return result

        ratio = self._log_steps[0] / log_step
        slope = (denoised - self._denoised[0]) / ratio
        if self.config.solver_order == 2:
            return result + (1 - decay) / 2 * slope

        phi2 = math.expm1(-g) / g + 1
        if order == 2:
            return result + phi2 * slope

        ratio2 = self._log_steps[1] / log_step
        slope2 = (self._denoised[0] - self._denoised[1]) / ratio2
        curvature = (slope - slope2) / (ratio + ratio2)
        phi3 = phi2 / g - 0.5
        return result + phi2 * (slope + curvature * ratio) - phi3 * curvature
