"""
Compute the parameters and memory of the four released models from the shapes of their tensors, without their weights.

Memory is that of the weights in bfloat16, except for those that stay in float32.
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
from audiox_diffusers.loaders import component_configs

MANIFESTS = Path(__file__).parents[1] / "tests" / "fixtures" / "manifest"
T5_BASE = T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)


def components(release: str, device: str = "meta") -> dict[str, torch.nn.Module]:
    """Create the networks of a release with random weights. AudioX-Turbo has those of AudioX-MAF-MMDiT, but for one matrix."""
    manifest = release.replace("audiox-turbo", "audiox-maf-mmdit")
    config = json.loads((MANIFESTS / f"{manifest}.config.json").read_text())
    shapes = json.loads((MANIFESTS / f"{manifest}.keys.json").read_text())
    state_dict = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    configs = component_configs(config, state_dict)
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
