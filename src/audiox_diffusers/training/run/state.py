"""State of a run in a checkpoint: weights, optimizer, learning rate and random states. Loading it runs no code."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .deepspeed_files import load_deepspeed
from .optimizer_state import load_optimizer, local, optimizer_state
from .random_states import random_states, restore_random_states
from .state_files import check_like, json_file, read_state, read_tensors, reading, tensor_file, write_state

MODEL, OPTIMIZER, RANDOM = "model{}", "optimizer{}", "random-{}"
DEEPSPEED = "pytorch_model"


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
        write_state(folder, RANDOM.format(self.accelerator.process_index), random_states())
        if self.deepspeed:
            self.model.save_checkpoint(str(folder), DEEPSPEED)
        if not self.accelerator.is_main_process and not self.shard:
            return
        state = self._schedules()
        if not self.deepspeed:
            tensors = {name: local(tensor).detach().cpu().contiguous() for name, tensor in self._tensors().items()}
            save_file(tensors, tensor_file(folder, MODEL.format(self.shard)))
            state["optimizer"] = optimizer_state(self.optimizer)
        write_state(folder, OPTIMIZER.format(self.shard), state)

    def load(self, folder: Path) -> None:
        """
        Read the state. All processes call this.

        Raises:
            CheckpointError: A file is missing or damaged, or belongs to another run.
        """
        name = OPTIMIZER.format(self.shard)
        state = read_state(folder, name)
        if self.deepspeed:
            load_deepspeed(self.model, folder, DEEPSPEED)
        else:
            weights = tensor_file(folder, MODEL.format(self.shard))
            with reading(weights):
                self._load_weights(read_tensors(weights))
        with reading(json_file(folder, name)):
            if not self.deepspeed:
                load_optimizer(self.optimizer, state.pop("optimizer"))
            check_like(state, self._schedules(), name)
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        restore_random_states(folder, RANDOM.format(self.accelerator.process_index))

    def _schedules(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return trained parameters and persistent buffers. Frozen weights are loaded with the pipeline."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        persistent = model.state_dict(keep_vars=True).keys()
        parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        return {**parameters, **{name: tensor for name, tensor in model.named_buffers() if name in persistent}}

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        tensors = {name: local(tensor) for name, tensor in self._tensors().items()}
        if weights.keys() != tensors.keys():
            raise ValueError(f"it has other weights: {', '.join(sorted(weights.keys() ^ tensors.keys())[:3])}")
        for name, tensor in tensors.items():
            check_like(weights[name], tensor, name)
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])
