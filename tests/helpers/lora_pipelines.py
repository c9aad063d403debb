"""Small pipelines for tests of adapters, and random adapters."""

import torch
from helpers import seeded
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from audiox_diffusers import AudioXMMTransformer2DModel, AudioXPipeline, AudioXTransformer2DModel
from audiox_diffusers.testing import create_small_pipeline

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_k", "to_v", "proj_in"]
PROJECTIONS = ["video_proj.proj", "audio_proj.proj"]
WIDE = {"cross_attention_input_dim": 64, "time_proj_dim": 16, "in_channels": 128, "sample_size": 125}
TRANSFORMERS = {
    "dit": (AudioXTransformer2DModel, {"num_key_value_attention_heads": 1, "cross_attention_dim": 16}),
    "mmdit": (AudioXMMTransformer2DModel, {"num_context_tokens": 269, "ff_inner_dim": 40}),
}


def build_pipeline(kind: str, num_layers: int = 2) -> AudioXPipeline:
    pipe = create_small_pipeline()
    model_class, config = TRANSFORMERS[kind]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        pipe.transformer = model_class(
            num_layers=num_layers, num_attention_heads=2, attention_head_dim=32, **WIDE, **config
        ).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: AudioXPipeline, **options) -> torch.Tensor:
    options = {"prompt": "a bell", "num_inference_steps": 2, "guidance_scale": 3.0, **options}
    return pipe(generator=seeded(), output_type="latent", **options).audios


def generate_from_audio(pipe: AudioXPipeline) -> torch.Tensor:
    """Generate with an audio prompt, which passes the conditioner's projection."""
    return generate(pipe, audio=(torch.ones(1, 8000), 8000))


def add_adapter(
    pipe: AudioXPipeline, name: str = "default", seed: int = 0, conditioner: bool = False, **config
) -> None:
    """Add an adapter with random layers that change the output, optionally to the conditioner too."""
    targets = {"transformer": TARGETS} | ({"conditioner": PROJECTIONS} if conditioner else {})
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for component, modules in targets.items():
            settings = {"r": 4, "lora_alpha": 6, "target_modules": modules, "init_lora_weights": False, **config}
            getattr(pipe, component).add_adapter(LoraConfig(**settings), adapter_name=name)


def adapter_layers(
    pipe: AudioXPipeline, name: str = "default", prefix: str = "transformer."
) -> dict[str, torch.Tensor]:
    """Return the layers of the transformer as a state dict."""
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name=name)
    return {f"{prefix}{key}": tensor.detach().clone() for key, tensor in layers.items()}


def save_adapter(pipe: AudioXPipeline, folder, name: str = "default", base: bool = True, **options) -> None:
    """Save an adapter as a training does."""
    for component in ("transformer", "conditioner"):
        model = getattr(pipe, component)
        if name in getattr(model, "peft_config", {}):
            options[f"{component}_lora_layers"] = get_peft_model_state_dict(model, adapter_name=name)
            options[f"{component}_lora_adapter_metadata"] = model.peft_config[name].to_dict()
    base_model = pipe.base_model_metadata("someone/audiox") if base else None
    AudioXPipeline.save_lora_weights(folder, base_model_metadata=base_model, **options)


def weights_of(*models: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{key}": value.clone() for i, model in enumerate(models) for key, value in model.state_dict().items()}


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max() > 1e-3 * b.abs().max()
