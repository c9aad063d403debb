"""Rectified flow as AudioX-Turbo samples it: Euler for the teacher, denoise and noise again for the student."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from .step_index import StepIndexMixin


class AudioXFlowMatchScheduler(StepIndexMixin, SchedulerMixin, ConfigMixin):
    r"""
    Rectified flow (arXiv 2209.03003): `x_t = (1 - t) x0 + t noise`, with the velocity `v = noise - x0`, at times that
    fall evenly from 1 to 0. A step from `t` to `t'` is Euler's, `x' = x + (t' - t) v`. With `stochastic_sampling` it
    is that of the few-step student (arXiv 2606.12555): `x0 = x - t v`, then `x' = (1 - t') x0 + t' noise` with fresh
    noise.

    It differs from `FlowMatchEulerDiscreteScheduler` of diffusers in its times, 0..1 as the networks of AudioX see
    them, and in taking the noise of a step from outside where it is given.

    Parameters:
        stochastic_sampling (`bool`): whether to denoise and noise again instead of following the flow.
        num_train_timesteps (`int`): number of times before `set_timesteps` is called.

    Attributes:
        sigmas (`torch.Tensor` of shape `[N + 1]`): the times and the final 0, float64, on the CPU.
        timesteps (`torch.Tensor` of shape `[N]`): the time of each model call, float32.
    """

    _compatibles = []
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, stochastic_sampling: bool = False, num_train_timesteps: int = 1000):
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """
        Lay out the times. Call it before sampling.

        Args:
            num_inference_steps (`int`): number of steps, at least 1, evenly spaced from time 1 to time 0.
            device (`str` or `torch.device`, *optional*): where `timesteps` are kept.
            sigmas (`list[float]`, *optional*): falling times of your own in 0..1, without the final 0.

        Raises:
            ValueError: if both or neither are given, or they are out of range.
        """
        self._check_schedule(num_inference_steps, sigmas)
        if sigmas is None:
            times = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)[:-1]
        else:
            times = torch.as_tensor(sigmas, dtype=torch.float64)
            if times.ndim != 1 or not len(times) or times.max() > 1 or times.min() <= 0 or (times.diff() >= 0).any():
                raise ValueError(f"`sigmas` must be falling, at most 1 and above 0, got {sigmas}.")

        self.num_inference_steps = len(times)
        self.sigmas = torch.cat((times, times.new_zeros(1)))
        self.timesteps = times.to(torch.float32).to(device)
        self._step_index = None
        self._begin_index = None

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The sample itself."""
        return sample

    def velocity(self, denoised: torch.Tensor, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """
        The velocity that leads from the current sample to this clean one: `v = (x - x0) / t`. A sample that is given
        it at every step stays `(1 - t) x0 + t noise`, and ends as `x0`.

        Args:
            denoised, sample (`torch.Tensor` of shape `[B, ...]`): clean and current sample, float32.
            timestep (`float` or scalar `torch.Tensor`): current time.
        """
        self._init_step_index(timestep)
        return (sample - denoised) / self.sigmas[self._step_index].item()

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Noise clean samples to the times of the schedule that are nearest to `timesteps`.

        Args:
            original_samples, noise (`torch.Tensor` of shape `[B, ...]`): clean samples, and unit noise.
            timesteps (`torch.Tensor` of shape `[B]`): times in 0..1.

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
        From one time to the next.

        Args:
            model_output (`torch.Tensor` of shape `[B, ...]`): velocity that the model predicts.
            timestep (`float` or scalar `torch.Tensor`): current time, one of `timesteps`.
            sample (`torch.Tensor` of shape `[B, ...]`): current sample.
            generator (`torch.Generator` or one for each sample, *optional*): source of the noise.
            variance_noise (`torch.Tensor` of shape `[B, ...]`, *optional*): unit noise to use instead.
            return_dict (`bool`): whether to return a [`~schedulers.scheduling_utils.SchedulerOutput`].

        Returns:
            The sample at the next time, in the dtype of `sample`.
        """
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
