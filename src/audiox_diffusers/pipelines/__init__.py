from .features import load_features, save_features
from .load_original import load_original_checkpoint
from .pipeline_audiox import AudioXPipeline

__all__ = ["AudioXPipeline", "load_features", "load_original_checkpoint", "save_features"]
