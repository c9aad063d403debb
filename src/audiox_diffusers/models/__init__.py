from .autoencoder_oobleck import AudioXAutoencoderOobleck
from .conditioner_audiox import AudioXConditioner, AudioXConditionerOutput
from .context_audiox import AudioXContext
from .synchformer import SynchformerVisionModel
from .transformer_audiox import AudioXTransformer2DModel
from .transformer_audiox_mm import AudioXMMTransformer2DModel

__all__ = [
    "AudioXAutoencoderOobleck",
    "AudioXConditioner",
    "AudioXConditionerOutput",
    "AudioXContext",
    "AudioXMMTransformer2DModel",
    "AudioXTransformer2DModel",
    "SynchformerVisionModel",
]
