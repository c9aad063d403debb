from .autoencoder_oobleck import AudioXAutoencoderOobleck
from .conditioner_audiox import AudioXConditioner, AudioXConditionerOutput
from .transformer_audiox import AudioXTransformer2DModel

__all__ = ["AudioXAutoencoderOobleck", "AudioXConditioner", "AudioXConditionerOutput", "AudioXTransformer2DModel"]
