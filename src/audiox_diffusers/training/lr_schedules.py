"""The learning rate over the steps of a run."""

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
    One of `LR_SCHEDULERS`: those of [`~diffusers.optimization.get_scheduler`], and `"inverse_sqrt"`, with which AudioX
    was trained (arXiv 2503.10522): at step `k`, from 0, the learning rate is multiplied by
    `(1 - warmup_decay^(k + 1)) / sqrt(1 + k / inv_gamma)`.

    Args:
        name: which one.
        optimizer: whose learning rate is the peak.
        num_warmup_steps: steps of linear warm-up, for all but `"constant"` and `"inverse_sqrt"`.
        num_training_steps: steps of the run, for those that end: all but the constant ones and `"inverse_sqrt"`.
        num_cycles: of `"cosine_with_restarts"`.
        power: of `"polynomial"`.
        inv_gamma: steps of `"inverse_sqrt"` after which the rate has fallen to `1 / sqrt(2)`.
        warmup_decay: of `"inverse_sqrt"`, in 0..1: how slowly it warms up; 0 is not at all.

    Raises:
        ValueError: there is no such schedule, or it needs `num_training_steps`.
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
