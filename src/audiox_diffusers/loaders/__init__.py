from .checkpoint_mapping import convert_state_dict, fold_weight_norm
from .original_checkpoint import check_weights, component_configs, fill_component, load_components

__all__ = [
    "fill_component",
    "check_weights",
    "component_configs",
    "convert_state_dict",
    "fold_weight_norm",
    "load_components",
]
