"""
Parameters and memory of the four releases, by component, from the lists of their tensors: no weights are needed.

Memory is that of the weights in bfloat16, with what stays in float32 counted as such.
"""

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

from audiox_diffusers import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
from audiox_diffusers.loaders import component_configs, published_config

MANIFESTS = Path(__file__).parents[1] / "tests" / "fixtures" / "manifest"
T5_BASE = T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)


def components(release: str, device: str = "meta") -> dict[str, torch.nn.Module]:
    """Return the networks of a release, with random weights."""
    shapes = json.loads((MANIFESTS / f"{release}.keys.json").read_text())
    state_dict = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    configs = component_configs(published_config(release), state_dict)
    mmdit = "num_context_tokens" in configs["transformer"]
    with torch.device(device):
        networks = {
            "transformer": (AudioXMMTransformer2DModel if mmdit else AudioXTransformer2DModel)(
                **configs["transformer"]
            ),
            "conditioner": AudioXConditioner(**configs["conditioner"]),
            "vae": AudioXAutoencoderOobleck(**configs["vae"]),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)),
            "text_encoder": T5EncoderModel(T5_BASE),
        }
        if configs["conditioner"]["num_sync_tokens"] is not None:
            networks["sync_encoder"] = SynchformerVisionModel()
    return networks


def main() -> None:
    for release in ("audiox", "audiox-maf", "audiox-maf-mmdit", "audiox-turbo"):
        parameters, memory = {}, 0
        for name, model in components(release).items():
            kept = set(model._keep_in_fp32_modules or [])
            parameters[name] = sum(parameter.numel() for parameter in model.parameters())
            memory += sum(
                parameter.numel() * (4 if kept & set(key.split(".")) else 2)
                for key, parameter in model.named_parameters()
            )
        parts = ", ".join(f"{name} {count / 1e6:.0f} M" for name, count in parameters.items())
        print(f"{release}: {sum(parameters.values()) / 1e9:.2f} B, {memory / 1e9:.1f} GB in bfloat16 ({parts})")


if __name__ == "__main__":
    main()
