"""State of an optimizer, whole or sharded, and its checks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ...messages import shortened
from .state_files import check_like

# States with a value for each value of their parameter.
ELEMENTWISE = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "state1", "state2", "z"}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor. It shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer, with this process's parts of its tensors."""
    return _map_tensors(optimizer.state_dict(), local)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """
    Load what [`optimizer_state`] returned into an optimizer with the same parameters and settings.

    Raises:
        ValueError: The state belongs to another optimizer, or is damaged.
    """
    current = optimizer.state_dict()
    in_torch = type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith("torch.optim")
    groups = state["param_groups"] if in_torch else _known(state["param_groups"], current["param_groups"])
    check_like({**state, "state": {}, "param_groups": groups}, {**current, "state": {}}, "optimizer")
    numbers = [number for group in current["param_groups"] for number in group["params"]]
    parameters = [local(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    _check_states(state["state"], dict(zip(numbers, parameters, strict=True)))
    # Other optimizers may have other states for small parameters.
    if in_torch:
        _check_alike(state["state"])
    optimizer.load_state_dict(state)
    _shard(optimizer)


def _known(groups: Any, current: list[dict[str, Any]]) -> Any:
    """Leave out the numbers that optimizers of other packages, such as Prodigy, add to their groups in the first step."""
    return [
        {name: value for name, value in group.items() if name in like or not _is_number(value)}
        for group, like in zip(groups, current, strict=True)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_states(states: Any, parameters: dict[int, torch.Tensor]) -> None:
    if not isinstance(states, dict):
        raise ValueError(f"optimizer/state must be by parameter, got {shortened(states)}")
    for number, values in states.items():
        if number not in parameters or not isinstance(values, dict):
            raise ValueError(f"optimizer/state/{number} must be the state of a parameter, got {shortened(values)}")
        for name in ELEMENTWISE & values.keys():
            shape, value = list(parameters[number].shape), values[name]
            found = list(value.shape) if isinstance(value, torch.Tensor) else shortened(value)
            if found != shape:
                raise ValueError(f"optimizer/state/{number}/{name} must have the shape {shape}, got {found}")


def _check_alike(states: dict[int, dict[str, Any]]) -> None:
    for number, values in states.items():
        first = next(iter(states.values()))
        for name in {**first, **values}:
            if type(values.get(name)) is not type(first.get(name)):
                raise ValueError(f"optimizer/state/{number}/{name} differs from that of the other parameters")


def _shard(optimizer: Optimizer) -> None:
    """Turn this process's parts of sharded states into distributed tensors."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, DTensor):
                state = optimizer.state[parameter]
                for name, value in state.items():
                    if value.dim() and not isinstance(value, DTensor):
                        state[name] = DTensor.from_local(
                            value,
                            parameter.device_mesh,
                            parameter.placements,
                            shape=parameter.shape,
                            stride=parameter.stride(),
                        )


def _map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, torch.Tensor) else value
