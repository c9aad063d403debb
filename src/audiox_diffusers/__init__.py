"""AudioX for diffusers: sound and music from any mix of text, video, image and audio."""

from . import _torchaudio  # before anything that imports torchaudio itself
from .diffusers_registry import register_cached_block, register_classes, register_single_file
from .loaders import component_configs, convert_state_dict
from .models import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from .models.transformer_audiox import AudioXTransformerBlock
from .pipelines import AudioXPipeline, load_original_checkpoint
from .schedulers import AudioXDPMSolverSDEScheduler
from .version import __version__

register_classes(
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXDPMSolverSDEScheduler,
    AudioXPipeline,
    AudioXTransformer2DModel,
)
register_cached_block(AudioXTransformerBlock)
register_single_file(
    AudioXTransformer2DModel,
    lambda state_dict: convert_state_dict(state_dict)["transformer"],
    lambda config, state_dict: component_configs(config, state_dict)["transformer"],
)

__all__ = [
    "AudioXAutoencoderOobleck",
    "AudioXConditioner",
    "AudioXDPMSolverSDEScheduler",
    "AudioXPipeline",
    "AudioXTransformer2DModel",
    "__version__",
    "load_original_checkpoint",
]
