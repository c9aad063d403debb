"""State of a run in a checkpoint: weights, optimizer, learning rate and random states. Loading it runs no code."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.serialization import get_unsafe_globals_in_checkpoint

from ...messages import first_line

MODEL, OPTIMIZER, RANDOM = "model{}.safetensors", "optimizer{}.bin", "random-{}.bin"
DEEPSPEED = "pytorch_model"
# Classes in DeepSpeed's checkpoints, which it unpickles.
DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


class RunState:
    """
    Write and read the state of a run.

    With FSDP each process writes its own shards. Otherwise the main process writes everything but the random states of
    the other processes.

    Args:
        accelerator: Accelerator of the run.
        model, optimizer: As `accelerator.prepare` returns them.
        lr_scheduler: Learning rate schedule.
    """

    def __init__(
        self, accelerator: Accelerator, model: torch.nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler
    ):
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        sharded = accelerator.distributed_type == DistributedType.FSDP
        self.shard = f"-{accelerator.process_index}" if sharded else ""

    def save(self, folder: Path) -> None:
        """Write the state. All processes call this."""
        torch.save(random_states(), folder / RANDOM.format(self.accelerator.process_index))
        if self.deepspeed:
            self.model.save_checkpoint(str(folder), DEEPSPEED)
        if not self.accelerator.is_main_process and not self.shard:
            return
        state = {"lr_scheduler": self.lr_scheduler.state_dict()}
        if not self.deepspeed:
            tensors = {name: local(tensor).detach().cpu().contiguous() for name, tensor in self._tensors().items()}
            save_file(tensors, folder / MODEL.format(self.shard))
            state["optimizer"] = _map_tensors(self.optimizer.state_dict(), local)
            state["scaler"] = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        torch.save(state, folder / OPTIMIZER.format(self.shard))

    def load(self, folder: Path) -> None:
        """
        Read the state. All processes call this.

        Raises:
            ValueError: A file is missing or damaged, or would run code.
        """
        with reading(folder):
            state = read(folder / OPTIMIZER.format(self.shard))
            if self.deepspeed:
                check_deepspeed_files(folder / DEEPSPEED)
                self.model.load_checkpoint(str(folder), DEEPSPEED)
            else:
                self._load_weights(load_file(folder / MODEL.format(self.shard)))
                self.optimizer.load_state_dict(state["optimizer"])
                self._shard_optimizer()
                if self.accelerator.scaler is not None:
                    self.accelerator.scaler.load_state_dict(state["scaler"])
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            restore_random_states(read(folder / RANDOM.format(self.accelerator.process_index)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return trained parameters and persistent buffers. Frozen weights are loaded with the pipeline."""
        model = self.accelerator.unwrap_model(self.model)
        persistent = model.state_dict(keep_vars=True).keys()
        parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        return {**parameters, **{name: tensor for name, tensor in model.named_buffers() if name in persistent}}

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        tensors = self._tensors()
        if weights.keys() != tensors.keys():
            raise ValueError(f"other weights: {', '.join(sorted(weights.keys() ^ tensors.keys())[:3])}")
        for name, tensor in tensors.items():
            if weights[name].shape != local(tensor).shape:
                raise ValueError(f"{name} has the shape {list(weights[name].shape)}, not {list(local(tensor).shape)}")
            local(tensor).copy_(weights[name])

    def _shard_optimizer(self) -> None:
        """Turn this process's parts of sharded states into distributed tensors."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if isinstance(parameter, DTensor):
                    state = self.optimizer.state[parameter]
                    for name, value in state.items():
                        if value.dim() and not isinstance(value, DTensor):
                            state[name] = DTensor.from_local(
                                value,
                                parameter.device_mesh,
                                parameter.placements,
                                shape=parameter.shape,
                                stride=parameter.stride(),
                            )


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor. It shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, torch.Tensor) else value


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Raise errors while reading a checkpoint as `ValueError` with the name of the checkpoint."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"--resume_from_checkpoint: {folder} cannot be used ({reason})") from error


def read(path: Path) -> Any:
    """Read a file of `torch.save` that holds only tensors, numbers, strings and containers of them."""
    return torch.load(path, map_location="cpu", weights_only=True)


def check_deepspeed_files(folder: Path) -> None:
    """
    Check the files that DeepSpeed is going to unpickle.

    Raises:
        ValueError: A file needs anything but tensors and DeepSpeed's own classes.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            unsafe = set(get_unsafe_globals_in_checkpoint(path)) - DEEPSPEED_CLASSES
        except Exception as error:  # the type depends on the damage
            raise ValueError(f"{path.name} is not a file of torch.save ({first_line(error)})") from error
        if unsafe:
            raise ValueError(f"{path.name} would run code: {', '.join(sorted(unsafe))}")


def random_states() -> dict[str, Any]:
    """Return the states of all random number generators."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the states of all random number generators."""
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
