from .checkpoint_mapping import (
    convert_state_dict,
    convert_synchformer_state_dict,
    convert_vae_state_dict,
    fold_weight_norm,
)
from .hub_names import on_hub, public_name
from .lora import CHANGES_BASE, AudioXLoraLoaderMixin, architecture
from .original_checkpoint import check_weights, fill_component, load_components, transformer_config
from .original_config import component_configs

__all__ = [
    "CHANGES_BASE",
    "AudioXLoraLoaderMixin",
    "architecture",
    "check_weights",
    "component_configs",
    "convert_state_dict",
    "convert_synchformer_state_dict",
    "convert_vae_state_dict",
    "fill_component",
    "fold_weight_norm",
    "load_components",
    "on_hub",
    "public_name",
    "transformer_config",
]
