"""The position of a scheduler in its schedule."""

import numbers

import torch
from diffusers.utils.torch_utils import randn_tensor

# Upper limit of steps, so that a typing mistake does not fill the memory.
MAX_STEPS = 10_000
# A timestep may have been rounded to half precision.
ROUNDING = 0.005


def _check_steps(name: str, steps: int) -> None:
    whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
    if not whole or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"`{name}` must be a whole number, 1 to {MAX_STEPS}, got {steps!r}.")


class StepIndexMixin:
    """
    Step counting for schedulers with `timesteps` `[N]` and `sigmas` `[N + 1]`, which end with 0. Their `set_timesteps`
    must set `_step_index` and `_begin_index` to `None`.
    """

    @property
    def step_index(self) -> int | None:
        """Index of the current step, or `None` before the first step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, or `None` to look it up from the first timestep."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at step `begin_index` instead of looking up the first timestep."""
        self._begin_index = begin_index

    @staticmethod
    def _check_config(num_train_timesteps: int, **values: tuple[float, float, float]) -> None:
        """Raise `ValueError` unless the number of steps and all `name=(value, lowest, highest)` are in range."""
        _check_steps("num_train_timesteps", num_train_timesteps)
        for name, (value, lowest, highest) in values.items():
            if not isinstance(value, numbers.Real) or not lowest <= value <= highest:
                raise ValueError(f"`{name}` must be a number in {lowest:g}..{highest:g}, got {value!r}.")

    @staticmethod
    def _check_schedule(num_inference_steps: int | None, sigmas: list[float] | None) -> None:
        """Raise `ValueError` unless exactly one argument is given and the number of steps is valid."""
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Pass exactly one of `num_inference_steps` and `sigmas`.")
        if sigmas is None:
            _check_steps("num_inference_steps", num_inference_steps)

    @staticmethod
    def _check_distilled_timesteps(times: list[float] | None, highest: float) -> None:
        """Raise `ValueError` unless the times of a few-step model are decreasing numbers in 0..`highest`, without 0."""
        if times is None:
            return
        numeric = isinstance(times, list | tuple) and times and all(isinstance(time, numbers.Real) for time in times)
        if (
            not numeric
            or not 0 < min(times) <= max(times) <= highest
            or sorted(set(times), reverse=True) != list(times)
        ):
            raise ValueError(
                f"`distilled_timesteps` must be decreasing numbers above 0, at most {highest:g}, got {times!r}."
            )

    def _distilled_times(self, num_inference_steps: int) -> torch.Tensor:
        """
        Return `num_inference_steps` of the `distilled_timesteps`, float64, from the first on and evenly spaced.

        Raises:
            ValueError: The model was distilled for fewer steps.
        """
        times = torch.tensor(self.config.distilled_timesteps, dtype=torch.float64)
        if num_inference_steps > len(times):
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}, but the model was distilled for {len(times)} steps,"
                " so it allows no more."
            )
        return times[torch.arange(num_inference_steps) * len(times) // num_inference_steps]

    @staticmethod
    def _as_levels(sigmas: list[float]) -> torch.Tensor:
        try:
            return torch.as_tensor(sigmas, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"`sigmas` must be a list of numbers, got {sigmas!r}.") from None

    @staticmethod
    def _check_shapes(model_output: torch.Tensor, sample: torch.Tensor) -> None:
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the shape of `sample`, {list(sample.shape)}, got {list(model_output.shape)}."
            )

    @staticmethod
    def _unit_noise(
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        variance_noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the given noise, or draw noise with the shape of the float32 `sample`."""
        if variance_noise is not None:
            return variance_noise.float()
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Return the index of the timestep closest to `timestep`, the first one if there are several."""
        return (self.timesteps - torch.as_tensor(timestep, device=self.timesteps.device)).abs().argmin().item()

    def _init_step_index(self, timestep: float | torch.Tensor) -> None:
        if self._step_index is None:
            index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
            if self._begin_index is None and abs(self.timesteps[index] - timestep) > ROUNDING:
                raise ValueError(f"`timestep` {float(timestep):g} is not one of the scheduler's `timesteps`.")
            self._step_index = index

    def _next_levels(self, timestep: float | torch.Tensor) -> tuple[float, float]:
        """Return the levels of this step and the next, and advance the index."""
        self._init_step_index(timestep)
        if self._step_index >= len(self.timesteps):
            raise ValueError("`step` was called more often than there are timesteps. Call `set_timesteps` first.")
        self._step_index += 1
        return self.sigmas[self._step_index - 1].item(), self.sigmas[self._step_index].item()

    def _levels_for(self, timesteps: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Return the levels closest to `timesteps` `[B]`, broadcastable to `samples`, on its device and in its dtype."""
        # On the device of the times, so that nothing waits for it.
        timesteps = torch.as_tensor(timesteps, device=self.timesteps.device)
        nearest = (self.timesteps - timesteps[:, None]).abs().argmin(dim=1)
        levels = self.sigmas.to(samples.dtype).to(nearest.device)[nearest]
        return levels.to(samples.device).view(-1, *(1,) * (samples.ndim - 1))

    def __len__(self) -> int:
        return self.config.num_train_timesteps
