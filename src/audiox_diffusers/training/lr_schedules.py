"""Learning rate schedules."""

from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)


def get_lr_scheduler(
    name: str,
    optimizer: Optimizer,
    *,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    num_cycles: int = 1,
    power: float = 1.0,
    inv_gamma: float = 1e6,
    warmup_decay: float = 0.99,
) -> LambdaLR:
    """
    Return a schedule of [`~diffusers.optimization.get_scheduler`], or `"inverse_sqrt"`, the schedule of AudioX
    (arXiv 2503.10522), which at step `k`, counted from 0, multiplies the learning rate by
    `(1 - warmup_decay^(k + 1)) / sqrt(1 + k / inv_gamma)`.

    Args:
        name: One of `LR_SCHEDULERS`.
        optimizer: Optimizer, with the peak learning rate.
        num_warmup_steps: Steps of linear warmup, for all but `"constant"` and `"inverse_sqrt"`.
        num_training_steps: Steps of the run, for all but the constant schedules and `"inverse_sqrt"`.
        num_cycles: Number of cycles of `"cosine_with_restarts"`.
        power: Exponent of `"polynomial"`.
        inv_gamma: Steps after which `"inverse_sqrt"` has decayed to `1 / sqrt(2)`.
        warmup_decay: Warmup of `"inverse_sqrt"`, in 0..1. Higher is slower; 0 means no warmup.

    Raises:
        ValueError: `name` is unknown, or the schedule needs `num_training_steps`.
    """
    if name not in LR_SCHEDULERS:
        raise ValueError(f"`lr_scheduler` must be one of {', '.join(LR_SCHEDULERS)}, got {name!r}.")
    if name == "inverse_sqrt":
        return LambdaLR(optimizer, lambda step: (1 - warmup_decay ** (step + 1)) * (1 + step / inv_gamma) ** -0.5)
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        power=power,
    )
