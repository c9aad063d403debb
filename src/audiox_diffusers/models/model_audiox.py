"""What every AudioX model adds to diffusers' `ModelMixin`."""

import os
from collections.abc import Iterable
from functools import wraps

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

logger = logging.get_logger(__name__)


def some_names(names: Iterable[str], limit: int = 3) -> str:
    """Return the first `limit` names in backticks, and how many more there are."""
    names = sorted(names)
    listed = ", ".join(f"`{name}`" for name in names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def check_loaded_keys(model: str, missing_keys: Iterable[str], unexpected_keys: Iterable[str]) -> None:
    """
    Check that a checkpoint and a model have the same weights.

    Raises:
        ValueError: If there are missing or unexpected keys.
    """
    faults = {"The checkpoint lacks": list(missing_keys), "The model has no place for": list(unexpected_keys)}
    faults = [f"{fault} {some_names(keys)}." for fault, keys in faults.items() if keys]
    if faults:
        raise ValueError(f"The config and the weights of {model} do not match. {' '.join(faults)}")


class AudioXModelMixin(ModelMixin):
    """`ModelMixin` that loads complete weights only, and saves weights without adapters."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, output_loading_info: bool = False, **kwargs):
        r"""
        See [`~ModelMixin.from_pretrained`].

        Raises:
            ValueError: If the checkpoint lacks weights of the model, or has weights that the model lacks.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        # Prequantized weights have keys of their own.
        unexpected = [] if getattr(model, "hf_quantizer", None) else info["unexpected_keys"]
        path = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "").rstrip(os.sep)
        check_loaded_keys(f"{cls.__name__} in {path}", info["missing_keys"], unexpected)
        return (model, info) if output_loading_info else model

    # Pipelines read the signature to choose what they pass.
    @wraps(ModelMixin.save_pretrained, assigned=())
    def save_pretrained(self, *args, **kwargs) -> None:
        r"""
        See [`~ModelMixin.save_pretrained`]. Adapters are not saved. Their effect is, if they are fused.
        """
        adapters = [name for name in getattr(self, "peft_config", {}) if name not in fused_adapters(self)]
        if adapters:
            logger.warning(
                f"The weights of {type(self).__name__} are saved without the adapters {', '.join(adapters)}. Save them"
                " with `save_lora_adapter`, or call `fuse_lora` first."
            )
        handle = self.register_state_dict_post_hook(_remove_adapters)
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            handle.remove()


def fused_adapters(model: torch.nn.Module) -> set[str]:
    """Return the names of the adapters that are fused into the weights of a model."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return {name for layer in layers for name in layer.merged_adapters}


def _remove_adapters(model: torch.nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, metadata: dict) -> None:
    """Replace each module with adapters by the module that they wrap."""
    wrapped = {BaseTunerLayer: "base_layer", AuxiliaryTrainingWrapper: "original_module"}
    # Inner modules first, because one wrapper may be inside another.
    for name, module in reversed(list(model.named_modules())):
        inner = next((inner for kind, inner in wrapped.items() if isinstance(module, kind)), None)
        if inner is None:
            continue
        for key in [key for key in state_dict if key.startswith(f"{name}.")]:
            tensor = state_dict.pop(key)
            if key.startswith(f"{name}.{inner}."):
                state_dict[f"{name}.{key.removeprefix(f'{name}.{inner}.')}"] = tensor
