"""AudioX for diffusers: sound and music from any mix of text, video, image and audio."""

from functools import partial

from . import _torchaudio  # before anything that imports torchaudio itself
from .diffusers_registry import register_cached_block, register_classes, register_single_file
from .loaders import convert_state_dict, transformer_config
from .models import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
from .models.transformer_audiox import AudioXTransformerBlock
from .models.transformer_audiox_mm import AudioXMMTransformerBlock
from .pipelines import AudioXInpaintPipeline, AudioXPipeline, load_original_checkpoint
from .schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from .version import __version__

register_classes(
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXDPMSolverSDEScheduler,
    AudioXFlowMatchScheduler,
    AudioXInpaintPipeline,
    AudioXMMTransformer2DModel,
    AudioXPipeline,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
for block_class in (AudioXTransformerBlock, AudioXMMTransformerBlock):
    register_cached_block(block_class)
for transformer_class in (AudioXTransformer2DModel, AudioXMMTransformer2DModel):
    register_single_file(
        transformer_class,
        lambda state_dict: convert_state_dict(state_dict)["transformer"],
        partial(transformer_config, transformer_class),
    )

__all__ = [
    "AudioXAutoencoderOobleck",
    "AudioXConditioner",
    "AudioXDPMSolverSDEScheduler",
    "AudioXFlowMatchScheduler",
    "AudioXInpaintPipeline",
    "AudioXMMTransformer2DModel",
    "AudioXPipeline",
    "AudioXTransformer2DModel",
    "SynchformerVisionModel",
    "__version__",
    "load_original_checkpoint",
]
