"""Where a scheduler stands in its schedule."""

import numbers

import torch
from diffusers.utils.torch_utils import randn_tensor


class StepIndexMixin:
    """
    For schedulers with `timesteps`, `[N]`, and `sigmas`, `[N + 1]` with the final 0, whose `set_timesteps` sets
    `_step_index` and `_begin_index` to `None`.
    """

    @property
    def step_index(self) -> int | None:
        """Index of the current step, `None` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, `None` where it is taken from the first timestep."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at step `begin_index` of the schedule instead of looking the first timestep up."""
        self._begin_index = begin_index

    @staticmethod
    def _check_schedule(num_inference_steps: int | None, sigmas: list[float] | None) -> None:
        """Raise `ValueError` unless one of the two is given, and the number of steps is one."""
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Give either `num_inference_steps` or `sigmas`.")
        if sigmas is None and (not isinstance(num_inference_steps, numbers.Integral) or num_inference_steps < 1):
            raise ValueError(f"`num_inference_steps` must be a whole number above 0, got {num_inference_steps}.")

    @staticmethod
    def _unit_noise(
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        variance_noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """The noise that is given, or a draw of the shape of a float32 `sample`; float32."""
        if variance_noise is not None:
            return variance_noise.float()
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The first step whose time is nearest to `timestep`."""
        return (self.timesteps - torch.as_tensor(timestep, device=self.timesteps.device)).abs().argmin().item()

    def _init_step_index(self, timestep: float | torch.Tensor) -> None:
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index

    def _next_levels(self, timestep: float | torch.Tensor) -> tuple[float, float]:
        """The level of this step and that of the next, to which the index moves on."""
        self._init_step_index(timestep)
        if self._step_index >= len(self.timesteps):
            raise ValueError("`step` was called more often than there are timesteps: call `set_timesteps` again.")
        self._step_index += 1
        return self.sigmas[self._step_index - 1].item(), self.sigmas[self._step_index].item()

    def _levels_for(self, timesteps: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """The levels nearest to `timesteps` `[B]`, on the device and in the dtype and dimensions of `samples`."""
        levels = torch.stack([self.sigmas[self.index_for_timestep(timestep)] for timestep in timesteps])
        return levels.to(samples.device, samples.dtype).view(-1, *(1,) * (samples.ndim - 1))

    def __len__(self) -> int:
        return self.config.num_train_timesteps
