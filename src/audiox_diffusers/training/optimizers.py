"""Optimizers of the trained weights."""

import inspect
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging
from torch.optim import Optimizer

if TYPE_CHECKING:
    from .arguments import TrainingArguments

logger = logging.get_logger(__name__)

# Package and class of each optimizer that is not part of torch.
PACKAGES = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
    "prodigy": ("prodigyopt", "prodigyopt", "Prodigy"),
    "schedulefree": ("schedulefree", "schedulefree", "AdamWScheduleFree"),
}
NAMES = ("adamw", *PACKAGES, "muon")
# They compute with whole weights.
WHOLE_WEIGHTS = {"muon", "prodigy", "schedulefree"}
# They need a closure, sparse gradients, or matrices alone.
UNUSABLE = {"LBFGS", "SparseAdam", "Muon"}


def torch_optimizers() -> list[str]:
    """Return the names of torch's optimizers that training can use."""
    found = [name for name, value in vars(torch.optim).items() if inspect.isclass(value) and name not in UNUSABLE]
    return sorted(name for name in found if issubclass(getattr(torch.optim, name), Optimizer) and name != "Optimizer")


def check_optimizer(name: str) -> None:
    """
    Check the name of an optimizer, and that its package is installed.

    Raises:
        ValueError: There is no such optimizer, or its package is missing.
    """
    if name not in NAMES and name not in torch_optimizers():
        names = ", ".join((*NAMES, *torch_optimizers()))
        raise ValueError(f"--optimizer must be one of {names}, got {name!r}")
    package = PACKAGES.get(name, (None,))[0]
    if package is not None and find_spec(package) is None:
        raise ValueError(f'--optimizer {name} needs {package}: pip install "audiox-diffusers[optimizers]"')


def build_optimizer(args: "TrainingArguments", model: torch.nn.Module, num_processes: int) -> Optimizer:
    """Build the optimizer of `--optimizer` for the trained parameters."""
    learning_rate, name = args.learning_rate, args.optimizer
    if args.scale_lr:
        learning_rate *= args.train_batch_size * args.gradient_accumulation_steps * num_processes
    if name == "prodigy" and learning_rate < 0.1:
        logger.warning(f"--optimizer prodigy multiplies the rate it finds by --learning_rate {learning_rate:g}; use 1")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if name == "muon":
        return MuonWithAdamW(parameters, **settings)
    if name == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    if name in PACKAGES:
        _, module, class_name = PACKAGES[name]
        if name == "schedulefree":
            settings["warmup_steps"] = args.lr_warmup_steps
        return getattr(import_module(module), class_name)(parameters, **settings)
    optimizer_class = getattr(torch.optim, name)
    known = inspect.signature(optimizer_class).parameters
    # An epsilon of Adafactor is a pair.
    known = {key for key, value in known.items() if key != "eps" or isinstance(value.default, float)}
    return optimizer_class(parameters, **{key: value for key, value in settings.items() if key in known})


class MuonWithAdamW(Optimizer):
    """
    Muon (Jordan et al., 2024) for matrices, and AdamW for all other parameters.

    The steps of Muon are scaled to the size of AdamW's (arXiv 2502.16982), so that both use one learning rate.

    Args:
        parameters: Parameters to train.
        lr, betas, weight_decay, eps: Settings of AdamW. Muon uses `lr` and `weight_decay`.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
    ):
        parameters = list(parameters)
        matrices = [parameter for parameter in parameters if parameter.dim() == 2]
        others = [parameter for parameter in parameters if parameter.dim() != 2]
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on the groups and states of this optimizer, which schedules and checkpoints change."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step()
