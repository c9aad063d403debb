"""Guidance: which contexts a step compares, and how it combines their predictions."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.guider_utils import BaseGuidance

from ..option_types import MODALITIES, guider_arguments
from ..schedulers import AudioXFlowMatchScheduler
from .checks import MAX_GUIDANCE, is_number

# The prediction that each guider combines, as in its paper.
_PREDICTIONS = {
    ClassifierFreeGuidance: "velocity",
    AdaptiveProjectedGuidance: "denoised",
    ClassifierFreeZeroStarGuidance: "flow",
}


def check_scale(scale: Any) -> None:
    """Raise `ValueError` unless a value is a guidance scale, or a dict of weights by modality."""
    if isinstance(scale, Mapping):
        if not scale or any(name not in MODALITIES for name in scale):
            raise ValueError(
                f"`guidance_scale` must have weights for {', '.join(MODALITIES)}, such as {{'text': 3, 'video': 7}},"
                f" got {scale!r}."
            )
        values = scale.values()
    else:
        values = [scale]
    if not all(is_number(value) and abs(value) <= MAX_GUIDANCE for value in values):
        raise ValueError(
            f"`guidance_scale` must be a number, at most {MAX_GUIDANCE:g}, or a dict of such numbers, got {scale!r}."
        )


def check_interval(interval: Any) -> None:
    """Raise `ValueError` unless a value is `None` or two times in 0..1, the lower one first."""
    if interval is None:
        return
    pair = isinstance(interval, list | tuple) and len(interval) == 2 and all(is_number(time) for time in interval)
    if not pair or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(
            f"`guidance_interval` must be two times in 0..1, the lower one first, such as (0.2, 0.8), got {interval!r}."
        )


def check_guider(guider: Any) -> None:
    """Raise `ValueError` unless a value is `None` or one of the supported guiders of diffusers."""
    if guider is not None and type(guider) not in _PREDICTIONS:
        names = ", ".join(kind.__name__ for kind in _PREDICTIONS)
        raise ValueError(f"`guider` must be one of {names}, got {type(guider).__name__}.")


def create_guider(text: str, scale: float) -> BaseGuidance:
    """Return the guider that a text such as `"apg:eta=0.5"` describes, with a scale."""
    name, arguments = guider_arguments(text)
    (kind,) = [kind for kind in _PREDICTIONS if kind.__name__ == name]
    return kind(guidance_scale=scale, **arguments)


def guide_by_modality(conditional: torch.Tensor, without: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """
    Return `v(c) + sum_m (w_m - 1) (v(c) - v(c without m))`, which is classifier-free guidance if there is one modality
    (compare InstructPix2Pix, arXiv 2211.09800, section 3.2.1).

    Args:
        conditional (`torch.Tensor` of shape `[B, C, L]`): Prediction with all modalities.
        without (`list[torch.Tensor]`): Prediction without each modality.
        weights (`list[float]`): Weight of each modality.
    """
    guided = conditional
    for prediction, weight in zip(without, weights, strict=True):
        guided = guided + (weight - 1) * (conditional - prediction)
    return guided


class GuiderRun:
    """
    A guider of diffusers during one run of the denoising loop. It has its own copies of the guider, one for each batch
    of windows, so that their momentum stays apart and the guider of the user stays unchanged.
    """

    def __init__(self, guider: BaseGuidance, scheduler: Any, num_steps: int, first_step: int):
        self._guider, self._scheduler = guider, scheduler
        self._num_steps, self._first_step = num_steps, first_step
        self._prediction = _PREDICTIONS[type(guider)]
        self._copies: dict[int, BaseGuidance] = {}

    def at(self, number: int, step: int, timestep: torch.Tensor) -> BaseGuidance:
        """Return the copy for a batch of windows, set to a step of this run."""
        if number not in self._copies:
            guider = self._copies[number] = deepcopy(self._guider)
            # Guiders create their momentum at step 0, and a run may start later.
            guider.set_state(0, self._num_steps, timestep)
            guider.prepare_inputs({})
        guider = self._copies[number]
        guider.set_state(self._first_step + step, self._num_steps, timestep)
        return guider

    def combine(
        self, guider: BaseGuidance, velocities: tuple[torch.Tensor, ...], sample: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """
        Return the guided velocity.

        Args:
            guider (`BaseGuidance`): What [`GuiderRun.at`] returned.
            velocities (`tuple[torch.Tensor, ...]`): The conditional velocity `[B, C, L]`, and the unconditional one if
                the guider wants it.
            sample (`torch.Tensor` of shape `[B, C, L]`): The noisy sample of the scheduler, from which the clean sample
                follows.
            timestep (`torch.Tensor`): Current time.
        """
        # Velocities of both schedulers are `a x - b x0`.
        a, b = self._scheduler.velocity(0.0, 1.0, timestep), -self._scheduler.velocity(1.0, 0.0, timestep)
        if self._prediction == "velocity" or self._is_flow:
            return _forward(guider, velocities)
        denoised = tuple((a * sample - velocity) / b for velocity in velocities)
        if self._prediction == "denoised":
            return a * sample - b * _forward(guider, denoised)
        # Rectified flow to noise, `e - x0`, of a sample `x0 + s e`.
        sigma = 1 / math.sqrt(b * b - 1)
        flow = _forward(guider, tuple((sample - (1 + sigma) * x) / sigma for x in denoised))
        return a * sample - b * (sample - sigma * flow) / (1 + sigma)

    @property
    def _is_flow(self) -> bool:
        """Whether the guider wants the flow, and the model predicts it."""
        return self._prediction == "flow" and isinstance(self._scheduler, AudioXFlowMatchScheduler)


def _forward(guider: BaseGuidance, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return guider.forward(**dict(zip(guider._input_predictions, predictions))).pred
