"""LoRA adapters: loading, saving, mixing and fusing, as in every pipeline of diffusers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.utils import get_adapter_name, logging
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict

from .hub_names import public_name

logger = logging.get_logger(__name__)

CONDITIONER = "conditioner"
BASE_MODEL = "base_model"
# Initialisations of peft that change the weights of the base: such layers fit no other.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AudioXLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    r"""
    Load LoRA layers into the transformer of an AudioX pipeline, of either class, and with them the tensors of the
    conditioner that an adapter may have been trained with. It builds on the plainest of diffusers' mixins for pipelines
    with one transformer.

    A file holds LoRA layers under `transformer.`, whole tensors under `conditioner.`, and in its metadata the
    configuration of peft (rank, alpha, target modules, ...) and the base model that the adapter belongs to.
    """

    _lora_loadable_modules = ["transformer", CONDITIONER]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs: Any,
    ) -> None:
        r"""
        Load an adapter and activate it. All is checked before anything is changed.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): a Hub id, a folder, a safetensors
                file or a state dict.
            adapter_name (`str`, *optional*): what to call it; by default `default_0` and so on.
            hotswap (`bool`): put it in the place of the adapter of that name, without compiling the transformer anew;
                see [`~loaders.PeftAdapterMixin.load_lora_adapter`].
            low_cpu_mem_usage (`bool`): make no random weights first.
            kwargs: `weight_name`, `subfolder`, `revision`, `token`, ... as of
                [`~loaders.StableDiffusionLoraLoaderMixin.lora_state_dict`].

        Raises:
            ValueError: what is given is no adapter, or one for another base; the message names the mismatch.
            FileNotFoundError: there is no such file.
        """
        if not isinstance(pretrained_model_name_or_path_or_dict, dict):
            path = Path(pretrained_model_name_or_path_or_dict)
            if path.suffix in (".safetensors", ".bin") and not path.is_file():
                raise FileNotFoundError(f"There is no file {path}.")
            pretrained_model_name_or_path_or_dict = os.fspath(pretrained_model_name_or_path_or_dict)
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        metadata = metadata or {}
        tensors = {
            key.removeprefix(f"{CONDITIONER}."): tensor
            for key, tensor in state_dict.items()
            if key.startswith(f"{CONDITIONER}.")
        }
        alphas = {key: float(tensor) for key, tensor in state_dict.items() if key.endswith(".alpha")}
        layers = {
            key: tensor
            for key, tensor in state_dict.items()
            if key not in alphas and not key.startswith(f"{CONDITIONER}.")
        }
        foreign = next((key for key in layers if "lora" not in key), None)
        if foreign is not None or not layers:
            raise ValueError(
                "Invalid LoRA checkpoint: it has no LoRA layers."
                if foreign is None
                else f"Invalid LoRA checkpoint: `{foreign}` is no LoRA layer."
            )
        config = {key: value for key, value in metadata.items() if key.startswith(f"{self.transformer_name}.")}
        self._check_base(metadata, bool(tensors))
        self._check_config(config)
        self._check_layers(layers)
        self.conditioner.check_full_tensors(tensors)

        adapter_name = adapter_name or get_adapter_name(self.transformer)
        self.transformer.load_lora_adapter(
            layers,
            network_alphas=alphas if alphas and not config else None,
            adapter_name=adapter_name,
            metadata=config or None,
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )
        self.conditioner.delete_adapters(adapter_name)
        if tensors:
            self.conditioner.load_full_tensors(tensors, adapter_name)
        self.conditioner.set_adapter(self.get_active_adapters())

    # Checks

    def base_model_metadata(self, name: str | None = None) -> dict[str, Any]:
        """
        What an adapter's file says of the model that it belongs to: class and config of transformer and conditioner.

        Args:
            name (`str`, *optional*): what the model is called; by default what the pipeline was loaded from, without
                the folders that lead to it.
        """
        name = name or self.config.get("_name_or_path")
        described = {key: _describe(getattr(self, key)) for key in ("transformer", CONDITIONER)}
        return {"name": public_name(name) if name else None, **described}

    def _check_base(self, metadata: dict[str, Any], has_tensors: bool) -> None:
        """`ValueError` if the adapter is for another transformer; a warning if only the conditioner is another."""
        for component in ("transformer", CONDITIONER):
            then = metadata.get(f"{BASE_MODEL}.{component}", {})
            now = _describe(getattr(self, component))
            differences = [
                f"{component}.{key} was {value!r} and is {now.get(key)!r}"
                for key, value in then.items()
                if now.get(key) != value
            ]
            if not differences:
                continue
            name = metadata.get(f"{BASE_MODEL}.name")
            what = f"The adapter was trained on another base model{f', {name}' if name else ''}"
            if component == "transformer" or has_tensors:
                raise ValueError(f"{what}: {'; '.join(differences)}.")
            logger.warning(f"{what}, whose conditioner differs: {'; '.join(differences)}. It may not do what it did.")

    def _check_config(self, config: dict[str, Any]) -> None:
        rank, init = (config.get(f"{self.transformer_name}.{key}") for key in ("r", "init_lora_weights"))
        if rank is not None and rank < 1:
            raise ValueError(f"The adapter's rank must be at least 1, got {rank}.")
        if isinstance(init, str) and init.startswith(CHANGES_BASE):
            raise ValueError(
                f"The adapter was initialised with {init!r}, which changes the base model's weights; it has to be"
                " converted to a plain LoRA first."
            )

    def _check_layers(self, layers: dict[str, torch.Tensor]) -> None:
        """`ValueError` naming the first layer that the transformer lacks, or has in another size."""
        modules, kind = dict(self.transformer.named_modules()), type(self.transformer).__name__
        for key, tensor in layers.items():
            name, _, factor = key.removeprefix(f"{self.transformer_name}.").partition(".lora_")
            if not key.startswith(f"{self.transformer_name}.") or factor not in ("A.weight", "B.weight"):
                continue
            if name not in modules:
                raise ValueError(f"The adapter is for another model: {kind} has no module `{name}`.")
            side, axis = ("in", 1) if factor == "A.weight" else ("out", 0)
            size = _features(modules[name], side)
            if tensor.shape[axis] != size:
                raise ValueError(
                    f"The adapter is for another model: `{name}` of {kind} has {size} {side}put features, in the"
                    f" adapter {tensor.shape[axis]}."
                )
            if tensor.shape[1 - axis] < 1:
                raise ValueError(f"The adapter's rank must be at least 1, got 0 for `{name}`.")

    def check_lora_scale(self, attention_kwargs: dict[str, Any] | None) -> None:
        """Warn where the scale of a call reaches only a part of the active adapters."""
        scale = (attention_kwargs or {}).get("scale", 1.0)
        whole = [name for name in self.get_active_adapters() if self.conditioner.full_tensors(name)]
        if scale != 1.0 and whole:
            logger.warning(
                f"The scale of {scale:g} in `attention_kwargs` does not reach the conditioner, of which the adapter"
                f" {whole[0]!r} brings a part; scale it with `set_adapters` instead."
            )

    # Saving

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.nn.Module | torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Any = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
        conditioner_tensors: dict[str, torch.Tensor] | None = None,
        base_model_metadata: dict[str, Any] | None = None,
    ) -> None:
        r"""
        Write an adapter into one file of a folder. [`~AudioXLoraLoaderMixin.save_lora_adapter`] gathers all that it
        takes from an adapter that is loaded.

        Args:
            save_directory (`str` or `os.PathLike`): where to; made if it is missing.
            transformer_lora_layers (`dict[str, torch.Tensor]`): of `peft.utils.get_peft_model_state_dict`.
            is_main_process, save_function, safe_serialization: as of
                [`~loaders.StableDiffusionLoraLoaderMixin.save_lora_weights`].
            weight_name (`str`, *optional*): of the file, by default `pytorch_lora_weights.safetensors`.
            transformer_lora_adapter_metadata (`dict`, *optional*): `to_dict()` of the `peft.LoraConfig`. Without it a
                reader takes the alpha for as large as the rank.
            conditioner_tensors (`dict[str, torch.Tensor]`, *optional*): parameters of the conditioner, by name.
            base_model_metadata (`dict`, *optional*): of [`~AudioXLoraLoaderMixin.base_model_metadata`]. Without it a
                reader knows another base by its sizes alone.
        """
        if not transformer_lora_layers:
            raise ValueError("`transformer_lora_layers` must be given.")
        layers, metadata = {cls.transformer_name: transformer_lora_layers}, {}
        if conditioner_tensors:
            layers[CONDITIONER] = conditioner_tensors
        if transformer_lora_adapter_metadata:
            metadata[cls.transformer_name] = {
                # In an order that does not change from run to run.
                key: sorted(value) if isinstance(value, set) else value
                for key, value in transformer_lora_adapter_metadata.items()
            }
        if base_model_metadata:
            metadata[BASE_MODEL] = base_model_metadata
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers=layers,
            lora_metadata=metadata,
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def save_lora_adapter(
        self, save_directory: str | os.PathLike, adapter_name: str = "default", weight_name: str | None = None
    ) -> None:
        r"""
        Write a loaded adapter whole: its layers, its part of the conditioner, its configuration and its base model.

        Args:
            save_directory (`str` or `os.PathLike`): where to; made if it is missing.
            adapter_name (`str`): which one.
            weight_name (`str`, *optional*): of the file, by default `pytorch_lora_weights.safetensors`.

        Raises:
            ValueError: there is no adapter of that name.
        """
        self._check_names([adapter_name])
        self.save_lora_weights(
            save_directory,
            get_peft_model_state_dict(self.transformer, adapter_name=adapter_name),
            weight_name=weight_name,
            transformer_lora_adapter_metadata=self.transformer.peft_config[adapter_name].to_dict(),
            conditioner_tensors=self.conditioner.full_tensors(adapter_name),
            base_model_metadata=self.base_model_metadata(),
        )

    def _check_names(self, adapter_names: list[str]) -> None:
        there = list(getattr(self.transformer, "peft_config", {}))
        for name in adapter_names:
            if name not in there:
                raise ValueError(f"There is no adapter {name!r}, but {', '.join(there) or 'none'}.")

    # Changing what is active

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Forget adapters, see [`~loaders.lora_base.LoraBaseMixin.delete_adapters`]."""
        super().delete_adapters(adapter_names)
        # Where peft has activated another one in the place of those.
        self.conditioner.set_adapter(self.get_active_adapters())

    def fuse_lora(
        self,
        components: list[str] = ["transformer", CONDITIONER],
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        r"""
        Add adapters, the active ones by default, to the weights that they belong to, so that they cost no time. See
        [`~loaders.lora_base.LoraBaseMixin.fuse_lora`].

        Raises:
            ValueError: an adapter is fused already, or there is none of that name; with `safe_fusing` also if it holds
                NaNs or infinite values, before anything is changed.
        """
        names = self.get_active_adapters() if adapter_names is None else adapter_names
        self._check_names(names)
        tuned = [module for module in self.transformer.modules() if isinstance(module, BaseTunerLayer)]
        for name in names:
            if any(name in module.merged_adapters for module in tuned):
                raise ValueError(f"The adapter {name!r} is fused already; call `unfuse_lora()` first.")
            layers = get_peft_model_state_dict(self.transformer, adapter_name=name)
            tensors = {**layers, **self.conditioner.full_tensors(name)} if safe_fusing else {}
            for key, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"NaNs detected in `{key}` of the adapter {name!r}; it is not fused.")
        if not names:
            logger.warning("There is no adapter to fuse.")
        for module in tuned:
            if not module.merged:
                # diffusers multiplies `lora_scale` into the layers, and leaves it there.
                module.scaling_before_fusing = dict(module.scaling)
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] = ["transformer", CONDITIONER], **kwargs: Any) -> None:
        """
        Undo `fuse_lora`: exactly in the conditioner, to rounding in the transformer, where what was added is
        subtracted. See [`~loaders.lora_base.LoraBaseMixin.unfuse_lora`].
        """
        super().unfuse_lora(components, **kwargs)
        for module in self.transformer.modules() if "transformer" in components else ():
            if hasattr(module, "scaling_before_fusing"):
                module.scaling.update(module.scaling_before_fusing)
                del module.scaling_before_fusing
        if CONDITIONER in components:
            self.conditioner.unfuse_lora()


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a network's config tells how it is built, and neither where it came from nor how its weights are kept."""
    return {key: value for key, value in config.items() if key[0] != "_" and key != "quantization_config"}


def _describe(model: torch.nn.Module) -> dict[str, Any]:
    return {"_class_name": type(model).__name__, **architecture(model.config)}


def _features(module: torch.nn.Module, side: str) -> int | None:
    """How many a linear layer or a convolution has on one side; `None` for what is neither."""
    return getattr(module, f"{side}_features", None) or getattr(module, f"{side}_channels", None)
