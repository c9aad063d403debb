from .load_original import load_original_checkpoint
from .pipeline_audiox import AudioXPipeline

__all__ = ["AudioXPipeline", "load_original_checkpoint"]
