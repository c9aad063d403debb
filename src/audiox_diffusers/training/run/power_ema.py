"""
Averages of the weights whose length is chosen after training (Karras et al., "Analyzing and Improving the Training Dynamics
of Diffusion Models", arXiv 2312.02696, section 3).

A power-function average at step `t` weights the weights at step `s` by `(gamma + 1) s^gamma / t^(gamma + 1)`. Its length is
given by `sigma_rel`, the standard deviation of this profile as a share of `t`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .state_files import check_count, check_like

# Name of the files with the averages in a checkpoint.
POST_HOC_EMA = "post-hoc-ema"
# Lengths of the two averages that are stored.
STORED = (0.05, 0.10)
# The length of a plain mean over all steps, where gamma is 0.
LONGEST = 12**-0.5


def gamma_of(sigma_rel: float) -> float:
    """
    Return the exponent of the profile with this length (algorithm 2 of the paper).

    It solves `sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`.

    Raises:
        ValueError: `sigma_rel` is not above 0 and at most `LONGEST`, 0.2887.
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ValueError(
            f"sigma_rel must be above 0 and at most {LONGEST:.4f}, a mean over all steps, got {sigma_rel}"
        )
    inverse = sigma_rel**-2
    return max(0.0, np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max().item())


class PowerFunctionAverages:
    """
    Averages of parameters with power-function profiles of the lengths in `STORED`.

    Args:
        parameters: Tensors to average, as they are before the first step.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]):
        self.step_count = 0
        self.averages = [[tensor.detach().clone() for tensor in parameters] for _ in STORED]

    @torch.no_grad()
    def step(self, parameters: Sequence[torch.Tensor]) -> None:
        """Add the parameters after a step (equation 127 of the paper)."""
        self.step_count += 1
        for sigma_rel, averages in zip(STORED, self.averages, strict=True):
            kept = (1 - 1 / self.step_count) ** (gamma_of(sigma_rel) + 1)
            for average, parameter in zip(averages, parameters, strict=True):
                average.lerp_(parameter.detach(), 1 - kept)

    def state_dict(self) -> dict[str, Any]:
        return {"step_count": self.step_count, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore what `state_dict` returned.

        Raises:
            ValueError: The state is damaged, or belongs to other parameters.
        """
        check_like(state, self.state_dict(), "averages")
        self.step_count = check_count(state["step_count"], "step_count")
        for averages, stored in zip(self.averages, state["averages"], strict=True):
            for average, tensor in zip(averages, stored, strict=True):
                average.copy_(tensor)


class Profile(NamedTuple):
    """Profile of a power-function average: its step and its length."""

    step: int
    sigma_rel: float


def combine(stored: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """
    Return the factors of stored averages whose sum is closest to a wanted one, by least squares (appendix C.2 of the paper).

    Returns:
        The factors, `[len(stored)]`, float64, and the distance between the profile of their sum and the wanted profile,
        relative to the norm of the wanted one. It is 0 if they are equal.
    """
    products = _inner_products(stored, stored)
    with_wanted = _inner_products(stored, [wanted])[:, 0]
    factors = np.linalg.lstsq(products, with_wanted, rcond=1e-13)[0]
    norm = _inner_products([wanted], [wanted])[0, 0]
    squared = norm - 2 * factors @ with_wanted + factors @ products @ factors
    return factors, float(np.sqrt(max(0.0, squared) / norm))


def _inner_products(left: Sequence[Profile], right: Sequence[Profile]) -> np.ndarray:
    """Return the integrals over time of the products of profiles, `[len(left), len(right)]`."""
    step_a, gamma_a = (column[:, None] for column in _columns(left))
    step_b, gamma_b = _columns(right)
    first = np.minimum(step_a, step_b)
    # Powers of ratios, because powers of steps overflow.
    powers = (first / step_a) ** (gamma_a + 1) * (first / step_b) ** (gamma_b + 1)
    return (gamma_a + 1) * (gamma_b + 1) * powers / ((gamma_a + gamma_b + 1) * first)


def _columns(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    steps, lengths = zip(*profiles, strict=True)
    return np.array(steps, float), np.array([gamma_of(length) for length in lengths])
