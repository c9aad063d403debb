from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import normal

from audiox_diffusers import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)


def build(model_class: type, config: dict) -> torch.nn.Module:
    """Build a small model in evaluation mode, always the same. No parameter is constant."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = model_class(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.min() == parameter.max():
                    parameter += 0.1 * torch.randn_like(parameter)
    return model


@dataclass
class Case:
    """A model class with a small config, and inputs for a call."""

    model_class: type
    config: dict
    inputs: Callable[[], dict[str, torch.Tensor]]
    first_arguments: list[str]

    def model(self, **config) -> torch.nn.Module:
        return build(self.model_class, self.config | config)


# Heads have more dimensions than are rotated, and each key-value head serves two query heads.
TRANSFORMER = Case(
    AudioXTransformer2DModel,
    {
        "sample_size": 9,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 40,
        "num_attention_heads": 4,
        "num_key_value_attention_heads": 2,
        "cross_attention_input_dim": 12,
        "cross_attention_dim": 20,
        "time_proj_dim": 16,
        "ff_mult": 2,
    },
    lambda: {
        "hidden_states": normal(2, 4, 9),
        "timestep": torch.tensor([0.3, 0.8]),
        "encoder_hidden_states": normal(2, 7, 12, seed=1),
    },
    ["hidden_states", "timestep", "encoder_hidden_states"],
)
AUTOENCODER = Case(
    AudioXAutoencoderOobleck,
    {
        "encoder_hidden_size": 4,
        "downsampling_ratios": [2, 4],
        "channel_multiples": [1, 2],
        "decoder_channels": 6,
        "decoder_input_channels": 3,
        "audio_channels": 2,
        "sampling_rate": 100,
    },
    lambda: {"sample": normal(2, 2, 160)},
    ["sample"],
)
CONDITIONER = Case(
    AudioXConditioner,
    {
        "condition_dim": 8,
        "num_text_tokens": 7,
        "num_video_frames": 3,
        "num_frame_tokens": 5,
        "num_video_tokens": 4,
        "num_temporal_layers": 2,
        "num_temporal_heads": 2,
        "latent_channels": 3,
        "num_audio_latents": 6,
        "audio_prompt_samples": 48,
    },
    lambda: {
        "text_embeds": normal(2, 7, 8),
        "video_embeds": normal(2, 3, 5, 8, seed=1),
        "audio_latents": normal(2, 3, 6, seed=2),
    },
    ["text_embeds", "video_embeds", "audio_latents"],
)

MM_TRANSFORMER = Case(
    AudioXMMTransformer2DModel,
    {
        "sample_size": 9,
        "in_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 6,
        "cross_attention_input_dim": 12,
        "num_context_tokens": 7,
        "time_proj_dim": 16,
        "ff_inner_dim": 20,
    },
    TRANSFORMER.inputs,
    TRANSFORMER.first_arguments,
)
FUSED_CONDITIONER = Case(
    AudioXConditioner,
    CONDITIONER.config
    | {
        "num_sync_tokens": 9,
        "audio_type": "audio_autoencoder_v2",
        "num_audio_tokens": 5,
        "num_fusion_experts": 2,
        "num_fusion_heads": 2,
        "num_fusion_layers": 2,
    },
    lambda: CONDITIONER.inputs() | {"sync_embeds": normal(2, 9, 8, seed=3)},
    CONDITIONER.first_arguments,
)
MEL_CONDITIONER = Case(
    AudioXConditioner,
    CONDITIONER.config | {"audio_type": "mel_spec", "num_mels": 20, "audio_prompt_samples": 3000},
    lambda: {
        "text_embeds": normal(2, 7, 8),
        "video_embeds": normal(2, 3, 5, 8, seed=1),
        "audio_waveform": normal(2, 2, 3000, seed=2),
    },
    CONDITIONER.first_arguments,
)
SYNCHFORMER = Case(
    SynchformerVisionModel,
    {
        "image_size": 8,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    },
    lambda: {"pixel_values": normal(2, 4, 3, 8, 8)},
    ["pixel_values"],
)
CASES = {
    "transformer": TRANSFORMER,
    "mm-transformer": MM_TRANSFORMER,
    "autoencoder": AUTOENCODER,
    "conditioner": CONDITIONER,
    "fused-conditioner": FUSED_CONDITIONER,
    "mel-conditioner": MEL_CONDITIONER,
    "synchformer": SYNCHFORMER,
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    """Each model."""
    return request.param


@pytest.fixture
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture
def transformer_case() -> Case:
    return TRANSFORMER


@pytest.fixture
def autoencoder_case() -> Case:
    return AUTOENCODER


@pytest.fixture
def conditioner_case() -> Case:
    return CONDITIONER


@pytest.fixture
def run():
    """Return a function that calls a model without gradients and returns the first output."""

    def call(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs, return_dict=False)[0]

    return call
