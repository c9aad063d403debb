from typing import TYPE_CHECKING

from .._imports import lazy_names

if TYPE_CHECKING:
    from .features import load_features, save_features
    from .load_original import load_original_checkpoint
    from .pipeline_audiox import AudioXPipeline
    from .pipeline_audiox_inpaint import AudioXInpaintPipeline

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "features": ["load_features", "save_features"],
        "load_original": ["load_original_checkpoint"],
        "pipeline_audiox": ["AudioXPipeline"],
        "pipeline_audiox_inpaint": ["AudioXInpaintPipeline"],
    },
)
