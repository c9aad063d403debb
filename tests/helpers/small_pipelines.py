"""Small pipelines of every kind of model, for tests of training data."""

import torch

from audiox_diffusers import (
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXPipeline,
    SynchformerVisionModel,
)
from audiox_diffusers.testing import HOP_LENGTH, NUM_FRAMES, create_small_pipeline

KINDS = ("audio_autoencoder", "audio_autoencoder_v2", "mel_spec")


def build_kind(kind: str) -> AudioXPipeline:
    """Build the small model with this kind of audio prompt. The later kinds have Synchformer, one also has fusion."""
    pipe = create_small_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind != "audio_autoencoder":
            later = {"audio_type": kind, "num_sync_tokens": 48, "num_audio_tokens": 20, "num_mels": 20}
            if kind == "audio_autoencoder_v2":
                later |= {"num_fusion_experts": 2, "num_fusion_heads": 2, "num_fusion_layers": 1}
                pipe.transformer = AudioXMMTransformer2DModel(
                    sample_size=NUM_FRAMES,
                    in_channels=HOP_LENGTH,
                    num_layers=1,
                    num_attention_heads=2,
                    attention_head_dim=16,
                    cross_attention_input_dim=64,
                    num_context_tokens=16 + 128 + 20,
                    time_proj_dim=16,
                    ff_inner_dim=32,
                )
            pipe.conditioner = AudioXConditioner(**{**pipe.conditioner.config, **later})
            pipe.sync_encoder = SynchformerVisionModel(
                image_size=8,
                patch_size=4,
                num_frames=4,
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                segment_stride=2,
            )
        # Zeros in fresh networks would hide faults.
        for module in (pipe.conditioner, pipe.transformer, pipe.sync_encoder):
            for parameter in () if module is None else module.parameters():
                if parameter.min() == parameter.max():
                    parameter.data += 0.1 * torch.randn_like(parameter)
    for component in (pipe.conditioner, pipe.transformer, pipe.sync_encoder):
        if component is not None:
            component.eval()
    return pipe
