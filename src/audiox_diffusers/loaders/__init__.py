from typing import TYPE_CHECKING

from .._imports import lazy_names

if TYPE_CHECKING:
    from .checkpoint_mapping import (
        convert_state_dict,
        convert_synchformer_state_dict,
        convert_vae_state_dict,
        fold_weight_norm,
        restore_state_dict,
        restore_synchformer_state_dict,
    )
    from .encoders import check_encoders
    from .hub_names import on_hub, public_name
    from .lora import CHANGES_BASE, AudioXLoraLoaderMixin, architecture
    from .original_checkpoint import check_weights, fill_component, load_components, transformer_config
    from .original_config import component_configs
    from .releases import RELEASES, find_release, published_config

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "checkpoint_mapping": [
            "convert_state_dict",
            "convert_synchformer_state_dict",
            "convert_vae_state_dict",
            "fold_weight_norm",
            "restore_state_dict",
            "restore_synchformer_state_dict",
        ],
        "encoders": ["check_encoders"],
        "hub_names": ["on_hub", "public_name"],
        "lora": ["CHANGES_BASE", "AudioXLoraLoaderMixin", "architecture"],
        "original_checkpoint": ["check_weights", "fill_component", "load_components", "transformer_config"],
        "original_config": ["component_configs"],
        "releases": ["RELEASES", "find_release", "published_config"],
    },
)
