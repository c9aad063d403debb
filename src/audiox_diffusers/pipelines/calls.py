"""Keep calls apart that run at the same time on one pipeline or on shared components."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class Call:
    """
    A running call.

    Args:
        pipeline (`DiffusionPipeline`): The object that it runs on.
        shared (`set[int]`): Identities of its networks.
        exclusive (`str`, *optional*): Reason why its networks cannot serve another call at the same time.
    """

    pipeline: DiffusionPipeline
    shared: set[int]
    exclusive: str | None


_lock = threading.Lock()
_running: list[Call] = []


@contextmanager
def separate(pipeline: DiffusionPipeline, attention_kwargs: dict[str, Any] | None) -> Iterator[DiffusionPipeline]:
    """
    Yield the pipeline that a call runs on: the pipeline itself, or a copy that shares its networks if another call is
    using it (in another thread, or because this call was made in a callback). If another call is using the scheduler,
    the pipeline gets a copy of it for the duration of the call.

    Raises:
        RuntimeError: Another call uses the same networks, and one of the two changes them while it runs.
    """
    networks = [component for component in pipeline.components.values() if isinstance(component, torch.nn.Module)]
    shared = {id(network) for network in networks}
    exclusive = _exclusive_reason(networks, attention_kwargs)
    with _lock:
        others = [call for call in _running if call.shared & shared]
        for reason in (exclusive, *(other.exclusive for other in others)):
            if others and reason:
                raise RuntimeError(f"Another call is using the networks of this pipeline, and {reason}. Wait for it.")
        own = copy.copy(pipeline) if any(call.pipeline is pipeline for call in _running) else pipeline
        scheduler = own.scheduler
        scheduler_in_use = any(call.pipeline.scheduler is scheduler for call in _running)
        if scheduler_in_use:
            # Not by assignment, which would go through the pipeline's config.
            vars(own)["scheduler"] = copy.copy(scheduler)
        call = Call(own, shared, exclusive)
        _running.append(call)
    try:
        yield own
    finally:
        with _lock:
            _running.remove(call)
            if scheduler_in_use:
                vars(own)["scheduler"] = scheduler


def _exclusive_reason(networks: list[torch.nn.Module], attention_kwargs: dict[str, Any] | None) -> str | None:
    """Return the reason why networks cannot serve two calls at the same time, or `None` if they can."""
    if (attention_kwargs or {}).get("scale", 1.0) != 1.0:
        return "`attention_kwargs` scales their LoRA layers"
    for network in networks:
        for module in network.modules():
            if hasattr(module, "_hf_hook") or getattr(getattr(module, "_diffusers_hook", None), "hooks", None):
                return "they have hooks (for offloading, caching or casting) that serve one call at a time"
    return None
