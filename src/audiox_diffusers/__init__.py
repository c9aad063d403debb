"""AudioX for diffusers: sound and music from any mix of text, video, image and audio."""

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from . import _torchaudio
from ._imports import lazy_names, when_imported
from .diffusers_registry import (
    register_cached_block,
    register_classes,
    register_model_names,
    register_single_file,
    register_text_to_audio,
)
from .loaders.releases import is_known
from .version import __version__

_MODULES = {
    "loaders": [],
    "media": [],
    "models": [
        "AudioXAutoencoderOobleck",
        "AudioXConditioner",
        "AudioXMMTransformer2DModel",
        "AudioXTransformer2DModel",
        "SynchformerVisionModel",
    ],
    "pipelines": ["AudioXInpaintPipeline", "AudioXPipeline", "load_original_checkpoint"],
    "schedulers": ["AudioXDPMSolverSDEScheduler", "AudioXFlowMatchScheduler"],
}

if TYPE_CHECKING:
    from .models import (
        AudioXAutoencoderOobleck,
        AudioXConditioner,
        AudioXMMTransformer2DModel,
        AudioXTransformer2DModel,
        SynchformerVisionModel,
    )
    from .pipelines import AudioXInpaintPipeline, AudioXPipeline, load_original_checkpoint
    from .schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler

__getattr__, __dir__, _names = lazy_names(__name__, _MODULES)
__all__ = [*_names, "__version__"]


def _register_models(models: ModuleType) -> None:
    from .models.transformer_audiox import AudioXTransformerBlock
    from .models.transformer_audiox_mm import AudioXMMTransformerBlock

    register_cached_block(AudioXTransformerBlock)
    register_cached_block(AudioXMMTransformerBlock)
    for transformer_class in (models.AudioXTransformer2DModel, models.AudioXMMTransformer2DModel):
        register_single_file(
            transformer_class,
            partial(_convert_transformer, transformer_class),
            partial(_read_config, transformer_class),
        )


def _convert_transformer(transformer_class: type, checkpoint: dict, config: dict) -> dict:
    from accelerate import init_empty_weights

    from .loaders import check_weights, convert_state_dict

    state_dict = convert_state_dict(checkpoint)["transformer"]
    with init_empty_weights():
        check_weights("transformer", transformer_class.from_config(config), state_dict)
    return state_dict


def _read_config(transformer_class: type, *args) -> dict:
    from .loaders import transformer_config

    return transformer_config(transformer_class, *args)


def _find_model(name: str, **hub_kwargs) -> str:
    from .pipelines.release_cache import find_model

    return find_model(name, **hub_kwargs)


register_classes((name for name in _names if name != "load_original_checkpoint"), __getattr__)
when_imported("audiox_diffusers.models", _register_models)
register_model_names(is_known, _find_model)
register_text_to_audio("audiox", lambda: __getattr__("AudioXPipeline"))
