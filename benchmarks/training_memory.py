"""
Calculate the memory of training from the shapes of the released tensors, without weights and GPU.

The result is the peak memory of a GPU in a training step with batches of one sample, in GB (1e9 bytes): weights,
gradients, the two moments of AdamW and the moving average in float32; bfloat16 copies of the weights, from autocast or
gathered by FSDP2; DDP's buckets, as large as the gradients; the frozen encoders in bfloat16 and the VAE in float32; and the
activations saved for the backward pass. `RESERVE` is an estimate for CUDA's context, kernels and the allocator.

Nearly all activations are in the blocks. For a token of width d, feed-forward width f, attention width a, N tokens, and S
context tokens of width c, a block saves these bytes per token:

- each LayerNorm, float32 under CUDA's autocast: its input, 4 d; a bfloat16 copy of its output for each layer that uses it,
  2 d; if it is modulated, also its output, 4 d, and the factor, 2 d;
- each attention: queries, keys, values and output, 2 a each; keys and values of the context S / N times that; with RMS
  norm also queries and keys before it;
- feed-forward: its inner tensors, 2 f each: four if gated, otherwise two;
- AudioXMMTransformerBlock: six modulations, their input, and the two outputs that they gate, 2 d each.

With gradient checkpointing each transformer block saves its input, 2 d, and only one block at a time the rest.

"default" has --use_ema. "saving memory" has --gradient_checkpointing and --cache_latents, no --use_ema, and
--use_8bit_adam except with FSDP2. With --gradient_accumulation_steps above 1, FSDP2 keeps whole gradients, 4 bytes more for
each weight.

With an adapter the base is in bfloat16 or quantized, and only the adapter has gradients and moments. Frozen linear layers
save no input, but frozen convolutions do. Each layer of the adapter saves a bfloat16 copy of its input, 2 bytes per channel,
and the tensor between its two factors, 2 r. So a block with an adapter on its attention saves:

- each LayerNorm: its input, 4 d; if it is modulated, the factor, 2 d;
- the inputs of the adapter's layers, 2 d each, or 2 c for keys and values of the context;
- attention as above; of a gated feed-forward three inner tensors, 2 f each, or four if it ends in a convolution;
- AudioXMMTransformerBlock: six modulations and the inputs of three convolutions, 2 d each.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from model_sizes import components
from peft import LoraConfig, inject_adapter_in_model

from audiox_diffusers.models.attention_audiox import AudioXEncoderBlock
from audiox_diffusers.models.transformer_audiox import AudioXTransformerBlock
from audiox_diffusers.models.transformer_audiox_mm import AudioXMMTransformerBlock
from audiox_diffusers.training.methods.lora import TARGETS

GPUS = 8
RESERVE = 2e9
CARDS = (24, 48, 80)
RANK = 16


def encoder_block(tokens: int, d: int, a: int) -> int:
    return tokens * ((4 + 6) * d + 8 * a + (4 + 2) * d + 4 * 4 * d)


def dit_block(tokens: int, d: int, context: int) -> int:
    return tokens * ((4 + 6) * d + 8 * d + (4 + 2) * d + 4 * d + (4 + 2) * d + 8 * 4 * d) + context * 4 * d


def mmdit_block(tokens: int, d: int, f: int) -> int:
    return tokens * ((10 + 6) * d + 12 * d + (10 + 4) * d + (2 + 12 + 4) * d + 8 * f)


def lora_dit_block(tokens: int, d: int, context: int, r: int) -> int:
    return tokens * (3 * 4 * d + 6 * 2 * d + 8 * d + 4 * d + 6 * 4 * d + 6 * 2 * r) + context * ((4 + 4) * d + 4 * r)


def lora_mmdit_block(tokens: int, d: int, f: int, r: int) -> int:
    return tokens * (2 * 6 * d + (4 + 3) * 2 * d + 12 * d + 12 * d + 8 * f + 4 * 2 * r)


def activations(networks: dict[str, torch.nn.Module]) -> tuple[float, float]:
    """Return bytes per sample without and with gradient checkpointing of the transformer."""
    config, conditioner = networks["transformer"].config, networks["conditioner"].config
    tokens, dim = config.sample_size + 1, conditioner.condition_dim
    width = config.num_attention_heads * config.attention_head_dim
    if "ff_inner_dim" in config:
        block = mmdit_block(tokens, width, config.ff_inner_dim)
    else:
        context = conditioner.num_video_tokens + conditioner.num_text_tokens + conditioner.num_audio_latents
        block = dit_block(tokens, width, context)
    places = conditioner.num_video_frames * conditioner.num_frame_tokens
    rest = conditioner.num_temporal_layers * encoder_block(places, dim, 64 * conditioner.num_temporal_heads)
    if conditioner.num_fusion_experts is not None:
        rest += conditioner.num_fusion_layers * encoder_block(3 * conditioner.num_fusion_experts, dim, dim)
    return rest + config.num_layers * block, rest + config.num_layers * 2 * tokens * width + block


def setups(networks: dict[str, torch.nn.Module]) -> dict[str, tuple[float, float, float]]:
    """
    Return bytes for each config: of the GPU without activations and frozen networks, by default and saving memory, and of
    the CPU.
    """
    trained = [networks["transformer"], networks["conditioner"]]
    p = sum(parameter.numel() for model in trained for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in networks["transformer"].transformer_blocks[0].parameters())
    # FSDP2 keeps two blocks and all weights outside of blocks gathered, and the gradients of one block.
    gathered = 2 * (p - networks["transformer"].config.num_layers * block) + (2 * 2 + 4) * block
    return {
        # Weights, gradients, moments (2 bytes in 8 bits), moving average (none), autocast's copies.
        "one_gpu.yaml": ((4 + 4 + 8 + 4 + 2) * p, (4 + 4 + 2 + 2) * p, 0),
        "one_node.yaml": ((4 + 4 + 8 + 4 + 2 + 4) * p, (4 + 4 + 2 + 2 + 4) * p, 0),
        f"several_nodes.yaml, {GPUS} GPUs": (20 * p / GPUS + gathered, 16 * p / GPUS + gathered, 0),
        f"low_memory.yaml, {GPUS} GPUs": (gathered, gathered, 20 * p),
    }


def table(release: str) -> None:
    networks = components(release)
    frozen = sum(
        parameter.numel() * (4 if name == "vae" else 2)
        for name, model in networks.items()
        if name not in ("transformer", "conditioner")
        for parameter in model.parameters()
    )
    plain, checkpointed = activations(networks)
    print(f"\n{release}: frozen networks {frozen / 1e9:.1f} GB, activations of a sample {plain / 1e9:.2f} GB,"
          f" with --gradient_checkpointing {checkpointed / 1e9:.2f} GB\n")  # fmt: skip
    print("| config | default, GB | fits on | saving memory, GB | fits on | CPU, GB |\n|---|---|---|---|---|---|")
    for name, (default, frugal, host) in setups(networks).items():
        totals = (default + frozen + plain + RESERVE, frugal + checkpointed + RESERVE)
        cells = [cell for total in totals for cell in (f"{total / 1e9:.1f}", card(total))]
        print(f"| {name} | {' | '.join(cells)} | {host / 1e9:.0f} |")


def lora_table(release: str) -> None:
    networks = components(release)
    transformer, conditioner = networks["transformer"], networks["conditioner"].config
    config, tokens = transformer.config, transformer.config.sample_size + 1
    base, rest = (
        sum(parameter.numel() for parameter in networks[n].parameters()) for n in ("transformer", "conditioner")
    )
    adapter = add_lora(transformer, TARGETS[type(transformer).__name__], RANK)
    width = config.num_attention_heads * config.attention_head_dim
    if "ff_inner_dim" in config:
        block = lora_mmdit_block(tokens, width, config.ff_inner_dim, RANK)
    else:
        context = conditioner.num_video_tokens + conditioner.num_text_tokens + conditioner.num_audio_latents
        block = lora_dit_block(tokens, width, context, RANK)
    parts = {
        "base, bfloat16": 2 * base,
        "conditioner, float32": 4 * rest,
        "adapter: weights and their bfloat16 copies": (4 + 2) * adapter,
        "adapter: gradients": 4 * adapter,
        "adapter: AdamW's moments": 8 * adapter,
        "activations": config.num_layers * block,
        "activations with --gradient_checkpointing": config.num_layers * 2 * tokens * width + block,
    }
    print(f"\n{release}, an adapter of rank {RANK} on its attention: {adapter / 1e6:.1f} M parameters,"
          f" a file of {4 * adapter / 1e6:.0f} MB\n\n| part | GB |\n|---|---|")  # fmt: skip
    for name, size in parts.items():
        print(f"| {name} | {size / 1e9:.2f} |")
    *fixed, plain, checkpointed = parts.values()
    for name, total in {
        "total, with CUDA's reserve": sum(fixed) + plain,
        "with --gradient_checkpointing": sum(fixed) + checkpointed,
        "and --quantization bnb_8bit": sum(fixed) + checkpointed - base,
        "and --quantization bnb_4bit": sum(fixed) + checkpointed - 1.5 * base,
    }.items():
        print(f"| **{name}** | **{(total + RESERVE) / 1e9:.1f}** |")


def add_lora(model: torch.nn.Module, targets: list[str], rank: int) -> int:
    """Add LoRA layers to a model and return the number of their parameters."""
    device = next(model.parameters()).device
    with torch.device(device):
        inject_adapter_in_model(LoraConfig(r=rank, target_modules=targets), model)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)


def card(total: float) -> str:
    return next((f"{size} GB" for size in CARDS if total <= size * 1e9), "none")


def saved_bytes(block: Callable, hidden_states: torch.Tensor) -> int:
    """Return the bytes that autograd saves under autocast, with LayerNorm in float32 as on CUDA."""
    storages, layer_norm = {}, F.layer_norm

    def layer_norm_in_float32(x, shape, weight=None, bias=None, eps=1e-5):
        weight, bias = (value if value is None else value.float() for value in (weight, bias))
        return layer_norm(x.float(), shape, weight, bias, eps)

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    F.layer_norm = layer_norm_in_float32
    try:
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            block(hidden_states)
    finally:
        F.layer_norm = layer_norm
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def measured_to_calculated(blocks: dict[int, Callable], tokens: int, d: int) -> list[str]:
    samples = [torch.randn(size, tokens, d, dtype=torch.bfloat16, requires_grad=True) for size in (1, 2)]
    ratios = []
    for calculated, block in blocks.items():
        one, two = (saved_bytes(block, sample) for sample in samples)
        ratios.append(f"{(two - one) / calculated:.2f}")
    return ratios


def check() -> None:
    """Print the ratio of measured to calculated activations at a small size, from the growth with the batch."""
    tokens, context, d, f = 120, 200, 256, 640
    angles = (torch.zeros(tokens, 32),) * 2
    # The shared inputs do not grow with the batch, so they do not count.
    shared = torch.randn(2, context, d, dtype=torch.bfloat16, requires_grad=True)
    dit, mmdit = AudioXTransformerBlock(d, 4, 2, 64, d, 4), AudioXMMTransformerBlock(d, 8, f)
    blocks = {
        encoder_block(tokens, d, 384): AudioXEncoderBlock(d, 6, 64),
        dit_block(tokens, d, context): lambda x: dit(x, shared[: len(x)], angles),
        mmdit_block(tokens, d, f): lambda x: mmdit(x, shared[: len(x), :tokens], shared[: len(x), 0], angles),
    }
    ratios = measured_to_calculated(blocks, tokens, d)
    print(
        f"activations, measured / calculated: encoder block {ratios[0]}, DiT block {ratios[1]}, MMDiT block {ratios[2]}"
    )


def check_lora() -> None:
    """Print the same ratio for blocks with an adapter."""
    tokens, context, d, f, r = 120, 200, 256, 640, 16
    angles = (torch.zeros(tokens, 32),) * 2
    shared = torch.randn(2, context, d, dtype=torch.bfloat16)
    dit, mmdit = AudioXTransformerBlock(d, 4, 2, 64, d, 4).bfloat16(), AudioXMMTransformerBlock(d, 8, f).bfloat16()
    for block in (dit, mmdit):
        add_lora(block, TARGETS[f"{type(block).__name__.removesuffix('Block')}2DModel"], r)
        for name, parameter in block.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    blocks = {
        lora_dit_block(tokens, d, context, r): lambda x: dit(x, shared[: len(x)], angles),
        lora_mmdit_block(tokens, d, f, r): lambda x: mmdit(x, shared[: len(x), :tokens], shared[: len(x), 0], angles),
    }
    ratios = measured_to_calculated(blocks, tokens, d)
    print(f"with an adapter, measured / calculated: DiT block {ratios[0]}, MMDiT block {ratios[1]}")


if __name__ == "__main__":
    check()
    check_lora()
    for release in ("audiox", "audiox-maf-mmdit"):
        table(release)
    for release in ("audiox", "audiox-maf-mmdit"):
        lora_table(release)
