"""Rectified flow for AudioX-Turbo: Euler steps for the teacher, denoise and renoise for the student."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from .step_index import StepIndexMixin


class AudioXFlowMatchScheduler(StepIndexMixin, SchedulerMixin, ConfigMixin):
    r"""
    Rectified flow (arXiv 2209.03003): `x_t = (1 - t) x0 + t noise`, with the velocity `v = noise - x0`, at times evenly
    spaced from 1 to 0. A step from `t` to `t'` is an Euler step, `x' = x + (t' - t) v`. With `stochastic_sampling`, it
    is a step of the few-step student (arXiv 2606.12555): `x0 = x - t v`, then `x' = (1 - t') x0 + t' noise` with new
    noise.

    Unlike diffusers' `FlowMatchEulerDiscreteScheduler`, its times are 0..1, which the AudioX networks expect, and the
    noise of a step can be passed in.

    Parameters:
        stochastic_sampling (`bool`): Whether to denoise and renoise instead of taking Euler steps.
        num_train_timesteps (`int`): Number of times before the first call of `set_timesteps`.
        distilled_timesteps (`list[float]`, *optional*): Times that a few-step model was distilled for, decreasing, in
            0..1 without 0. `set_timesteps` then selects among them, and allows no more steps.

    Attributes:
        sigmas (`torch.Tensor` of shape `[N + 1]`): Times and the final 0, float64, on the CPU.
        timesteps (`torch.Tensor` of shape `[N]`): Time of each model call, float32.
    """

    _compatibles = []
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        stochastic_sampling: bool = False,
        num_train_timesteps: int = 1000,
        distilled_timesteps: list[float] | None = None,
    ):
        self._check_config(num_train_timesteps)
        self._check_distilled_timesteps(distilled_timesteps, highest=1)
        self.set_timesteps(num_train_timesteps if distilled_timesteps is None else len(distilled_timesteps))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """
        Set the times and reset the steps. Call this before sampling.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps, at least 1, evenly spaced from time 1 to time 0,
                or among the `distilled_timesteps`.
            device (`str` or `torch.device`, *optional*): Device of `timesteps`.
            sigmas (`list[float]`, *optional*): Custom times, decreasing in 0..1 without the final 0, instead of
                `num_inference_steps`.

        Raises:
            ValueError: If both or neither of `num_inference_steps` and `sigmas` are given, or are out of range.
        """
        self._check_schedule(num_inference_steps, sigmas)
        if sigmas is None and self.config.distilled_timesteps is not None:
            times = self._distilled_times(num_inference_steps)
        elif sigmas is None:
            times = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)[:-1]
        else:
            times = self._as_levels(sigmas)
            in_range = (times > 0) & (times <= 1)
            if times.ndim != 1 or not len(times) or not in_range.all() or not (times.diff() < 0).all():
                raise ValueError(f"`sigmas` must be decreasing, at most 1 and above 0, got {sigmas}.")

        self.num_inference_steps = len(times)
        self.sigmas = torch.cat((times, times.new_zeros(1)))
        self.timesteps = times.to(torch.float32).to(device)
        self._step_index = None
        self._begin_index = None

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """Return the sample unchanged."""
        return sample

    def velocity(self, denoised: torch.Tensor, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """
        Return the velocity from `denoised` to `sample`: `v = (x - x0) / t`. With this velocity at every step, the
        sample stays `(1 - t) x0 + t noise`, and ends as `x0`.

        Args:
            denoised, sample (`torch.Tensor` of shape `[B, ...]`): Denoised and current sample, float32.
            timestep (`float` or scalar `torch.Tensor`): Current time.
        """
        self._init_step_index(timestep)
        return (sample - denoised) / self.sigmas[self._step_index].item()

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Add noise at the times of the schedule closest to `timesteps`.

        Args:
            original_samples, noise (`torch.Tensor` of shape `[B, ...]`): Clean samples, and unit noise.
            timesteps (`torch.Tensor` of shape `[B]`): Times in 0..1.

        Returns:
            `(1 - t) original_samples + t noise`.
        """
        times = self._levels_for(timesteps, original_samples)
        return (1 - times) * original_samples + times * noise

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
        Compute the sample at the next time.

        Args:
            model_output (`torch.Tensor` of shape `[B, ...]`): Predicted velocity.
            timestep (`float` or scalar `torch.Tensor`): Current time, one of `timesteps`.
            sample (`torch.Tensor` of shape `[B, ...]`): Current sample.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): One generator, or one per sample.
            variance_noise (`torch.Tensor` of shape `[B, ...]`, *optional*): Unit noise to use instead of drawing it.
            return_dict (`bool`): Whether to return a [`~schedulers.scheduling_utils.SchedulerOutput`].

        Returns:
            The sample at the next time, in the dtype of `sample`.
        """
        self._check_shapes(model_output, sample)
        time, next_time = self._next_levels(timestep)

        dtype, sample, velocity = sample.dtype, sample.float(), model_output.float()
        if not self.config.stochastic_sampling:
            prev_sample = sample + (next_time - time) * velocity
        else:
            prev_sample = sample - time * velocity
            if next_time > 0:
                noise = self._unit_noise(sample, generator, variance_noise)
                prev_sample = (1 - next_time) * prev_sample + next_time * noise

        prev_sample = prev_sample.to(dtype)
        if not return_dict:
            return (prev_sample,)
        return SchedulerOutput(prev_sample=prev_sample)
