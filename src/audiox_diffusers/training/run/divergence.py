"""Detection of training that diverged."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator

from .checkpoints import checkpoints

# Steps in a row whose loss or gradient is not finite, after which a run stops. A gradient scaler may need up to 17 of
# them to find its scale.
MAX_STEPS = 20


class DivergenceError(RuntimeError):
    """Training diverged: the loss, the gradient or the weights are not finite."""


class DivergenceGuard:
    """
    Stop a run that diverged, before it replaces good checkpoints.

    Args:
        accelerator: Accelerator of the run.
        output_dir: Folder of the checkpoints.

    Attributes:
        steps (`int`): Number of steps in a row whose loss or gradient was not finite.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path):
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.steps = 0

    def check_step(self, step: int, loss: float, norm: float | None, last: bool) -> None:
        """
        Check the loss and the gradient norm of a step, which are the same on all processes.

        Raises:
            DivergenceError: The last `MAX_STEPS` steps were not finite, or this one is not and is the last of the run.
        """
        finite = math.isfinite(loss) and (norm is None or math.isfinite(norm))
        self.steps = 0 if finite else self.steps + 1
        if self.steps == MAX_STEPS or (self.steps and last):
            raise self._error(f"loss or gradient of the last {self.steps} steps, up to step {step}, were not finite")

    def check_weights(self, step: int, weights: Iterable[torch.Tensor]) -> None:
        """
        Check the weights of all processes, which all call this.

        Raises:
            DivergenceError: A weight is not finite.
        """
        # Averages may be on another device.
        device = self.accelerator.device
        finite = torch.stack([torch.isfinite(tensor).all().to(device) for tensor in weights]).all()
        if not self.accelerator.gather(finite[None]).all():
            raise self._error(f"the weights are not finite after step {step}")

    def _error(self, reason: str) -> DivergenceError:
        kept = ", ".join(path.name for path in checkpoints(self.output_dir).values()) or "none"
        return DivergenceError(
            f"training diverged: {reason}. No checkpoint of these steps and no model was written. Checkpoints in"
            f" {self.output_dir}: {kept}. A lower --learning_rate may help."
        )
