"""LoRA adapters: loading, saving, mixing and fusing, with diffusers' methods."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.utils import logging
from diffusers.utils.torch_utils import unwrap_module
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError

from ..atomic import replacing
from ..models.model_audiox import fused_adapters, some_names
from .hub_names import public_name
from .lora_keys import LoraLayer, base_modules, check_siblings, read_lora_layers

logger = logging.get_logger(__name__)

CONDITIONER = "conditioner"
BASE_MODEL = "base_model"
# Initializations of peft that change the weights of the base model.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


class AudioXLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    r"""
    Load LoRA layers into the transformer and the conditioner of an AudioX pipeline. It extends the simplest diffusers
    mixin for pipelines with one transformer.

    A file has LoRA layers under `transformer.` and `conditioner.`. Its metadata has peft's configuration of each (rank,
    alpha, target modules, ...) and describes the base model.
    """

    _lora_loadable_modules = ["transformer", CONDITIONER]

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        weight_name: str | None = None,
        use_safetensors: bool | None = None,
        return_lora_metadata: bool = False,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        r"""
        Return the tensors of a LoRA file with their original keys. See
        [`~loaders.StableDiffusionLoraLoaderMixin.lora_state_dict`].

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged.
        """
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, dict):
            path, source = Path(source), os.fspath(source)
            if path.suffix in (".safetensors", ".bin") and not path.is_file():
                raise FileNotFoundError(f"There is no file {path}.")
            if path.suffix == ".safetensors":
                use_safetensors = True
        try:
            state_dict, metadata = _fetch_state_dict(
                source,
                weight_name=weight_name,
                use_safetensors=use_safetensors is not False,
                allow_pickle=use_safetensors is None,
                user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
                **{name: kwargs.get(name) for name in _HUB_OPTIONS},
            )
        except SafetensorError as error:
            raise ValueError(f"{source}: damaged, or not a safetensors file ({error}).") from error
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs: Any,
    ) -> None:
        r"""
        Load an adapter and activate it. Nothing changes unless the whole adapter can be loaded.

        Files of diffusers, peft, ComfyUI and kohya are converted. Their modules may have the names of this package or
        of the released code.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): Hub id, folder, file or state dict.
            adapter_name (`str`, *optional*): Name for the adapter. Defaults to `default_0` and so on.
            hotswap (`bool`): Whether to replace the adapter of that name without recompiling the transformer, see
                [`~loaders.PeftAdapterMixin.load_lora_adapter`].
            low_cpu_mem_usage (`bool`): Whether to skip the initialization of the layers.
            kwargs: `weight_name`, `subfolder`, `revision`, `token`, ..., see
                [`~loaders.StableDiffusionLoraLoaderMixin.lora_state_dict`].

        Raises:
            ValueError: If the file is not an adapter, if it is incomplete, or if it is for another base model.
            FileNotFoundError: If there is no such file.
        """
        if adapter_name is not None and (not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name):
            raise ValueError(f"`adapter_name` must be a name without dots, got {adapter_name!r}.")
        source, models = pretrained_model_name_or_path_or_dict, self._lora_models()
        state_dict, metadata = self.lora_state_dict(source, return_lora_metadata=True, **kwargs)
        metadata = metadata or _peft_metadata(source, state_dict, **kwargs)
        self._check_base(metadata, any(key.startswith(f"{CONDITIONER}.") for key in state_dict))
        layers = read_lora_layers(state_dict, models)
        configs = {
            component: _config(component, modules, metadata, models[component])
            for component, modules in layers.items()
        }
        if any(getattr(module, "fused_projections", False) for module in self.transformer.modules()):
            raise ValueError("The transformer's projections are fused. Call `unfuse_qkv_projections()` first.")

        if fused := {name for model in models.values() for name in fused_adapters(model)}:
            # peft would subtract them without an error.
            raise ValueError(
                f"Adapters are fused: {', '.join(sorted(fused))}. Before loading another one, call"
                " `unload_lora_weights()` to keep them in the weights, or `unfuse_lora()`."
            )

        names = {name for model in models.values() for name in getattr(model, "peft_config", {})}
        if adapter_name is None:
            adapter_name = next(name for i in range(len(names) + 1) if (name := f"default_{i}") not in names)
        elif adapter_name in names and not hotswap:
            raise ValueError(f"The adapter name {adapter_name!r} is already in use.")
        loaded = []
        try:
            for component, modules in layers.items():
                model = models[component]
                swap = hotswap and (adapter_name not in names or adapter_name in getattr(model, "peft_config", {}))
                model.load_lora_adapter(
                    _peft_state_dict(component, modules),
                    prefix=component,
                    adapter_name=adapter_name,
                    metadata={f"{component}.{key}": value for key, value in configs[component].items()},
                    _pipeline=self,
                    low_cpu_mem_usage=low_cpu_mem_usage,
                    hotswap=swap,
                )
                loaded.append(model)
        except Exception:
            if not hotswap:
                for model in loaded:
                    model.delete_adapters(adapter_name)
            raise
        for component in models.keys() - layers.keys():
            # A swapped adapter may have had layers here.
            models[component].delete_adapters(adapter_name)
        self._activate([adapter_name])

    def _lora_models(self) -> dict[str, torch.nn.Module]:
        """Return the components that can have adapters, also if they are compiled."""
        return {component: unwrap_module(getattr(self, component)) for component in self._lora_loadable_modules}

    def _activate(self, adapter_names: list[str]) -> None:
        """Activate adapters in all components, including those where they have no layers."""
        for model in self._lora_models().values():
            for layer in _lora_layers(model):
                layer.set_adapter(adapter_names)

    # Checks

    def base_model_metadata(self, name: str | None = None) -> dict[str, Any]:
        """
        Return the description of the base model for an adapter's file: class and config of transformer and conditioner.

        Args:
            name (`str`, *optional*): Name of the model. Defaults to the name that the pipeline was loaded from, without
                local folders.
        """
        name = name or self.config.get("_name_or_path")
        described = {component: _describe(model) for component, model in self._lora_models().items()}
        return {"name": public_name(name) if name else None, **described}

    def _check_base(self, metadata: dict[str, Any], changes_conditioner: bool) -> None:
        """Raise `ValueError` if the adapter is for another base model, or warn if it leaves the conditioner alone."""
        for component, model in self._lora_models().items():
            then = metadata.get(f"{BASE_MODEL}.{component}", {})
            now = _describe(model)
            differences = [
                f"{component}.{key} was {value!r} and is {now.get(key)!r}"
                for key, value in then.items()
                if now.get(key) != value
            ]
            if not differences:
                continue
            name = metadata.get(f"{BASE_MODEL}.name")
            message = f"The adapter was trained on another base model{f', {name}' if name else ''}: {'; '.join(differences)}."
            if component == "transformer" or changes_conditioner:
                raise ValueError(message)
            logger.warning(f"{message} Its effect may differ.")

    def check_lora_scale(self, attention_kwargs: dict[str, Any] | None) -> None:
        """Warn if the scale of a call does not reach all layers of the active adapters."""
        scale = (attention_kwargs or {}).get("scale", 1.0)
        unreached = [
            name for name in self.get_active_adapters() if name in getattr(self.conditioner, "peft_config", {})
        ]
        if scale != 1.0 and unreached:
            logger.warning(
                f"The scale of {scale:g} in `attention_kwargs` does not apply to the conditioner, where the adapter"
                f" {unreached[0]!r} has layers. Use `set_adapters` to scale it."
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
        conditioner_lora_layers: dict[str, torch.nn.Module | torch.Tensor] | None = None,
        conditioner_lora_adapter_metadata: dict[str, Any] | None = None,
        base_model_metadata: dict[str, Any] | None = None,
    ) -> None:
        r"""
        Write an adapter to one file. To save a loaded adapter, use [`~AudioXLoraLoaderMixin.save_lora_adapter`].

        Args:
            save_directory (`str` or `os.PathLike`): Folder, created if missing.
            transformer_lora_layers, conditioner_lora_layers (`dict[str, torch.Tensor]`, *optional*): Layers from
                `peft.utils.get_peft_model_state_dict`. At least one of the two is required.
            is_main_process, save_function, safe_serialization: See
                [`~loaders.StableDiffusionLoraLoaderMixin.save_lora_weights`].
            weight_name (`str`, *optional*): Name of the file. Defaults to `pytorch_lora_weights.safetensors`.
            transformer_lora_adapter_metadata, conditioner_lora_adapter_metadata (`dict`, *optional*): `to_dict()` of
                the `peft.LoraConfig`. Without it, alpha is read as equal to the rank.
            base_model_metadata (`dict`, *optional*): Result of [`~AudioXLoraLoaderMixin.base_model_metadata`]. Without
                it, only the sizes of the layers tell whether the adapter fits a model.
        """
        layers = {"transformer": transformer_lora_layers, CONDITIONER: conditioner_lora_layers}
        configs = {"transformer": transformer_lora_adapter_metadata, CONDITIONER: conditioner_lora_adapter_metadata}
        layers = {component: tensors for component, tensors in layers.items() if tensors}
        if not layers:
            raise ValueError("Pass `transformer_lora_layers`, `conditioner_lora_layers` or both.")
        metadata = {
            # Sets are sorted, so that files do not differ from run to run.
            component: {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
            for component, config in configs.items()
            if config and component in layers
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

    @classmethod
    def write_lora_layers(cls, state_dict, save_directory, is_main_process, weight_name, *args, **kwargs) -> None:
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"`save_directory` must be a folder, got the file {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        safe = kwargs.get("safe_serialization", True)
        path = folder / (weight_name or ("pytorch_lora_weights.safetensors" if safe else "pytorch_lora_weights.bin"))
        with replacing(path) as temporary:
            super().write_lora_layers(state_dict, temporary.parent, is_main_process, temporary.name, *args, **kwargs)

    def save_lora_adapter(
        self, save_directory: str | os.PathLike, adapter_name: str = "default", weight_name: str | None = None
    ) -> None:
        r"""
        Write a loaded adapter to one file, with its configuration and a description of its base model.

        Args:
            save_directory (`str` or `os.PathLike`): Folder, created if missing.
            adapter_name (`str`): Name of the adapter.
            weight_name (`str`, *optional*): Name of the file. Defaults to `pytorch_lora_weights.safetensors`.

        Raises:
            ValueError: If there is no adapter of that name.
        """
        self._check_names([adapter_name])
        options = {}
        for component, model in self._lora_models().items():
            if adapter_name in getattr(model, "peft_config", {}):
                options[f"{component}_lora_layers"] = get_peft_model_state_dict(model, adapter_name=adapter_name)
                options[f"{component}_lora_adapter_metadata"] = model.peft_config[adapter_name].to_dict()
        self.save_lora_weights(
            save_directory, weight_name=weight_name, base_model_metadata=self.base_model_metadata(), **options
        )

    def _check_names(self, adapter_names: Iterable[str]) -> None:
        loaded = list(dict.fromkeys(name for names in self.get_list_adapters().values() for name in names))
        for name in adapter_names:
            if name not in loaded:
                raise ValueError(f"There is no adapter {name!r}. Loaded adapters: {', '.join(loaded) or 'none'}.")

    # Changing what is active

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete adapters. See [`~loaders.lora_base.LoraBaseMixin.delete_adapters`]."""
        super().delete_adapters(adapter_names)
        # peft may have activated another adapter, and only in the components that it has layers in.
        loaded = {name for names in self.get_list_adapters().values() for name in names}
        active = [layer.active_adapters for model in self._lora_models().values() for layer in _lora_layers(model)]
        self._activate(next((names for names in active if loaded.intersection(names)), []))

    def fuse_lora(
        self,
        components: list[str] = ["transformer", CONDITIONER],
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        r"""
        Add adapters to the weights, so that they cost no time. Defaults to the active adapters. See
        [`~loaders.lora_base.LoraBaseMixin.fuse_lora`].

        Raises:
            ValueError: If an adapter is already fused or does not exist. With `safe_fusing`, also if an adapter has NaN
                or infinite values. Nothing changes then.
        """
        names = self.get_active_adapters() if adapter_names is None else adapter_names
        self._check_names(names)
        models = self._lora_models().values()
        for name in names:
            for model in models:
                if name in fused_adapters(model):
                    raise ValueError(f"The adapter {name!r} is already fused. Call `unfuse_lora()` first.")
                if not safe_fusing or name not in getattr(model, "peft_config", {}):
                    continue
                for key, tensor in get_peft_model_state_dict(model, adapter_name=name).items():
                    if not torch.isfinite(tensor).all():
                        raise ValueError(
                            f"NaN or infinite values in `{key}` of the adapter {name!r}. It is not fused."
                        )
        if not names:
            logger.warning("There is no adapter to fuse.")
        for model in models:
            for layer in _lora_layers(model):
                if not layer.merged:
                    # diffusers multiplies the scaling by `lora_scale` and does not restore it.
                    layer.scaling_before_fusing = dict(layer.scaling)
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] = ["transformer", CONDITIONER], **kwargs: Any) -> None:
        """
        Subtract fused adapters from the weights, which restores them up to rounding. See
        [`~loaders.lora_base.LoraBaseMixin.unfuse_lora`].
        """
        super().unfuse_lora(components, **kwargs)
        for component in components:
            for layer in _lora_layers(self._lora_models()[component]):
                if hasattr(layer, "scaling_before_fusing"):
                    layer.scaling.update(layer.scaling_before_fusing)
                    del layer.scaling_before_fusing


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model's config that describes its layers, without its origin and its quantization."""
    return {key: value for key, value in config.items() if key[0] != "_" and key != "quantization_config"}


def _describe(model: torch.nn.Module) -> dict[str, Any]:
    return {"_class_name": type(model).__name__, **architecture(model.config)}


def _lora_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _peft_metadata(source: Any, state_dict: Mapping[str, torch.Tensor], **kwargs: Any) -> dict[str, Any]:
    """Return the configuration that peft writes beside its files, as metadata of both components."""
    if not any(str(key).startswith("base_model.model.") for key in state_dict):
        return {}
    config = None
    if not isinstance(source, dict):
        path = Path(source)
        folder = path.parent if path.is_file() else source
        options = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        try:
            config = PeftConfig.from_pretrained(os.fspath(folder), **options)
        except (ValueError, OSError):
            config = None
    if config is None:
        logger.warning("The adapter has no `adapter_config.json` beside it. Its alpha is read as equal to its rank.")
        return {}
    if not isinstance(config, LoraConfig):
        raise ValueError(f"The adapter must be a LoRA, got {config.peft_type}.")
    return {
        f"{component}.{key}": value
        for component in ("transformer", CONDITIONER)
        for key, value in config.to_dict().items()
    }


def _peft_state_dict(component: str, modules: Mapping[str, LoraLayer]) -> dict[str, torch.Tensor]:
    endings = {
        "A": "lora_A.weight",
        "B": "lora_B.weight",
        "bias": "lora_B.bias",
        "magnitude": "lora_magnitude_vector",
    }
    return {
        f"{component}.{name}.{ending}": layer.factors[factor]
        for name, layer in modules.items()
        for factor, ending in endings.items()
        if factor in layer.factors
    }


def _config(
    component: str, modules: Mapping[str, LoraLayer], metadata: Mapping[str, Any], model: torch.nn.Module
) -> dict[str, Any]:
    """
    Return the settings of the `peft.LoraConfig` of a component, from the file's metadata or from its layers.

    Raises:
        ValueError: If the metadata and the layers do not match, or if layers are missing.
    """
    given = {
        key.removeprefix(f"{component}."): value for key, value in metadata.items() if key.startswith(f"{component}.")
    }
    if not given:
        check_siblings(component, modules)
        ranks = {name: layer.rank for name, layer in modules.items()}
        alphas = {name: layer.alpha or layer.rank for name, layer in modules.items()}
        factors = Counter(factor for layer in modules.values() for factor in layer.factors)
        config = {
            "r": (rank := _most_common(ranks)),
            "lora_alpha": (alpha := _most_common(alphas)),
            "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
            "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
            "target_modules": sorted(modules),
            "use_dora": factors["magnitude"] > 0,
            "lora_bias": factors["bias"] > 0,
        }
        _check_factors(component, modules, LoraConfig(**config))
        return config

    try:
        config = LoraConfig(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The adapter's configuration of the {component} is invalid: {error}") from error
    if config.r < 1:
        raise ValueError(f"The adapter's rank must be at least 1, got {config.r}.")
    init = config.init_lora_weights
    if isinstance(init, str) and init.startswith(CHANGES_BASE):
        raise ValueError(
            f"The adapter was initialized with {init!r}, which changes the base model's weights. Convert it to a plain"
            " LoRA first."
        )
    _check_factors(component, modules, config)
    targets = {name for name in base_modules(model) if check_target_module_exists(config, name)}
    if missing := targets - modules.keys():
        raise ValueError(
            f"Invalid LoRA file: it lacks {some_names(f'{component}.{name}' for name in missing)}, which its"
            " configuration targets."
        )
    if targets != modules.keys():
        # The configuration names the modules of the released code.
        check_siblings(component, modules)
        given = {**given, "target_modules": sorted(modules)}
    return given


def _most_common(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def _check_factors(component: str, modules: Mapping[str, LoraLayer], config: LoraConfig) -> None:
    """Check that each layer has the rank, the alpha and the factors of the configuration."""
    optional = {"magnitude": config.use_dora, "bias": config.lora_bias}
    expected = {"A", "B", *(factor for factor, used in optional.items() if used)}
    for name, layer in modules.items():
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, name), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
        if layer.rank != rank:
            raise ValueError(f"`{layer.keys['A']}` has rank {layer.rank}, and the adapter's configuration has {rank}.")
        if layer.alpha not in (None, alpha):
            raise ValueError(
                f"`{layer.keys['alpha']}` is {layer.alpha:g}, and the adapter's configuration has {alpha:g}."
            )
        if difference := expected ^ (layer.factors.keys() - {"alpha"}):
            fault = "lacks" if difference & expected else "has"
            raise ValueError(
                f"Invalid LoRA file: `{component}.{name}` {fault} {', '.join(sorted(difference))}, unlike other layers"
                " or the adapter's configuration."
            )
