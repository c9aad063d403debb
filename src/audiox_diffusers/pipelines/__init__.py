from .features import load_features, save_features
from .load_original import load_original_checkpoint
from .pipeline_audiox import AudioXPipeline
from .pipeline_audiox_inpaint import AudioXInpaintPipeline

__all__ = ["AudioXInpaintPipeline", "AudioXPipeline", "load_features", "load_original_checkpoint", "save_features"]
