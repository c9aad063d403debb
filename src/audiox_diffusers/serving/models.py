"""Models of a server, loaded on demand."""

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, try_to_load_from_cache
from yaml import YAMLError

from ..embedded import EMBEDDED_FOLDERS
from ..generation.loading import Placement, load_pipeline
from ..loaders.releases import LICENCE, find_release
from ..messages import describe, shortened
from ..pipelines import AudioXPipeline
from .errors import ServingError, bad_field
from .limits import Limits


@dataclass
class Loaded:
    """A model in memory."""

    pipe: AudioXPipeline
    size: int
    used: float
    adapters: tuple[tuple[str, float], ...] = ()


class Models:
    """
    Load models on demand, within a limit of memory. Only the engine's thread calls `get` and `unload`.

    Args:
        sources (`list[str]`): Models, as for `--model`. Clients call a folder by its name.
        loras (`list[str]`): LoRA adapters, as paths or Hub ids. Clients call a folder or file by its name.
        placement (`Placement`): Device and precision of all models.
        limits (`Limits`): Limits of the server.
    """

    def __init__(self, sources: list[str], loras: list[str], placement: Placement, limits: Limits) -> None:
        self.sources = {_public(source): source for source in sources}
        self.loras = {_public(source): source for source in loras}
        for kind, given, names in (("--model", sources, self.sources), ("--lora", loras, self.loras)):
            if len(given) != len(names):
                public = [_public(source) for source in given]
                twice = next(name for name in public if public.count(name) > 1)
                raise ValueError(f"{kind}: two have the same name, {twice}; clients could not tell them apart")
        self.placement, self.limits = placement, limits
        self.loaded: dict[str, Loaded] = {}
        self._sizes: dict[str, int] = {}

    @property
    def default(self) -> str:
        """Name of the model of requests that name none."""
        return next(iter(self.sources))

    def resolve(self, name: str | None) -> str:
        """Return the name of a served model. Raise status 404 for others."""
        if name is None:
            return self.default
        if name not in self.sources:
            raise ServingError(
                404,
                f"model: {shortened(name)} is not served here, use one of {', '.join(self.sources)}",
                param="model",
                code="model_not_found",
            )
        return name

    def check_adapters(self, scales: dict[str, float]) -> tuple[tuple[str, float], ...]:
        """Return adapters with their scales in a fixed order. Raise status 400 for unknown ones."""
        for name in scales:
            if name not in self.loras:
                known = f"use one of {', '.join(self.loras)}" if self.loras else "this server has none"
                raise bad_field("lora", f"no adapter {shortened(name)}, {known}")
        return tuple(sorted(scales.items()))

    def get(self, name: str, adapters: tuple[tuple[str, float], ...] = ()) -> AudioXPipeline:
        """Return a pipeline with exactly these adapters. Load it if it is not in memory."""
        if name not in self.loaded:
            self._load(name)
        model = self.loaded[name]
        model.used = time.monotonic()
        if model.adapters != adapters:
            self._set_adapters(model, adapters)
        return model.pipe

    def unload_idle(self) -> None:
        """Unload the models that were not used for longer than the limit."""
        if self.limits.idle_unload_s is not None:
            oldest = time.monotonic() - self.limits.idle_unload_s
            for name in [name for name, model in self.loaded.items() if model.used < oldest]:
                self.unload(name)

    def unload(self, name: str) -> None:
        """Remove a model from memory."""
        del self.loaded[name]
        gc.collect()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> list[dict[str, Any]]:
        """Return the models for clients."""
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "audiox-diffusers",
                "loaded": name in self.loaded,
                "license": license_of(source),
                "loras": list(self.loras),
            }
            for name, source in self.sources.items()
        ]

    def _load(self, name: str) -> None:
        most = self.limits.max_memory_bytes
        if most is not None:
            # A model whose size is not known yet gets all the memory.
            self._make_room(most - self._sizes.get(name, most))
        pipe, _ = load_pipeline(self.sources[name], self.placement)
        size = _size(pipe)
        self._sizes[name] = size
        if most is not None and size > most:
            raise ServingError(
                503,
                f"model {name}: its weights take {size / 1e9:.2g} GB, more than --max-memory allows"
                f" ({most / 1e9:g} GB)",
                code="model_too_large",
            )
        self.loaded[name] = Loaded(pipe, size, time.monotonic())

    def _make_room(self, allowed: int) -> None:
        """Unload the models that were used least recently until the others fit."""
        while self.loaded and sum(model.size for model in self.loaded.values()) > allowed:
            self.unload(min(self.loaded, key=lambda name: self.loaded[name].used))

    def _set_adapters(self, model: Loaded, adapters: tuple[tuple[str, float], ...]) -> None:
        model.pipe.unload_lora_weights()
        model.adapters = ()
        try:
            names = [f"lora_{number}" for number in range(len(adapters))]
            for (adapter, _), name in zip(adapters, names, strict=True):
                model.pipe.load_lora_weights(self.loras[adapter], adapter_name=name)
            if adapters:
                model.pipe.set_adapters(names, [scale for _, scale in adapters])
        except Exception as error:
            model.pipe.unload_lora_weights()
            message = describe(error)
            for adapter, _ in adapters:
                message = message.replace(self.loras[adapter], adapter)
            raise bad_field("lora", message) from error
        model.adapters = adapters


def _public(source: str) -> str:
    """Return the name of a model or adapter for clients, which never contains a path of the server."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def _size(pipe: AudioXPipeline) -> int:
    networks = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    return sum(tensor.nbytes for network in networks for tensor in (*network.parameters(), *network.buffers()))


def license_of(source: str) -> str | None:
    """Return the licence of a model: that of its card, if it is on this machine. `None` if it is not known."""
    folder = Path(source)
    if source in EMBEDDED_FOLDERS and not folder.is_dir():
        folder = EMBEDDED_FOLDERS[source]
    card = folder / "README.md"
    if not folder.exists():
        if find_release(source) is not None:
            return LICENCE.lower()
        card = Path(str(try_to_load_from_cache(source, "README.md")))
    if not card.is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (ValueError, OSError, YAMLError):
        return None
