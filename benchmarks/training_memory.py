"""
Memory of training on paper, from the lists of the released tensors: no weights and no GPU are needed.

Counted is what a GPU holds at the worst moment of a step, in GB (1e9 bytes), for batches of one sample: weights,
gradients, AdamW's two moments and the moving average in float32; weights in bfloat16 as autocast copies or FSDP2
gathers them; DDP's buckets, as large as the gradients; the frozen encoders in bfloat16 and the VAE in float32; and the
activations that a step keeps for its backward pass. `RESERVE` stands for CUDA's context and what kernels and the
allocator take, and is a guess.

Activations are those of the blocks, which are nearly all. A block saves, in bytes a token of width d, with a
feed-forward of width f, attention of width a and S context tokens of width c:

- every LayerNorm, float32 under CUDA's autocast: its input, 4 d; a bfloat16 copy of its output for each layer that it
  goes to, 2 d; where it is modulated, also the output, 4 d, and the factor, 2 d;
- every attention: queries, keys, values and output, 2 a each, keys and values of context S / N as many; where they are
  RMS-normalised, also the queries and keys before that;
- a feed-forward: every tensor of its inside, 2 f each: four if gated, two otherwise;
- AudioXMMTransformerBlock: its six modulations, their input and the two outputs that they gate, 2 d each.

With gradient checkpointing a block of the transformer keeps its input, 2 d, and one block at a time the rest.

"As it is" has --use_ema. "Saving memory" has --gradient_checkpointing and --cache_latents, no --use_ema, and
--use_8bit_adam where FSDP2 does not hand out the optimizer. FSDP2 keeps whole gradients, 4 bytes a weight more, with
--gradient_accumulation_steps above 1.

An adapter leaves the base in bfloat16, or quantized, and has gradients and moments of its own alone. A frozen layer
keeps no input for its weights' gradient, but a convolution does all the same; a layer of the adapter keeps a bfloat16 copy of its input, 2 bytes a channel,
and what is between its two factors, 2 r. So a block with layers on its attention saves:

- every LayerNorm: its input, 4 d; where it is modulated, the factor, 2 d;
- the inputs of the adapter's layers: 2 d each, those of keys and values of context 2 c;
- attention as above; of a gated feed-forward three tensors of its inside, 2 f each, four where it ends in a convolution;
- AudioXMMTransformerBlock: its six modulations and the inputs of three convolutions, 2 d each.
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
    """Bytes of a sample, without and with gradient checkpointing of the transformer."""
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
    """By name: bytes a GPU holds besides activations and frozen networks, the same saving memory, bytes of the host."""
    trained = [networks["transformer"], networks["conditioner"]]
    p = sum(parameter.numel() for model in trained for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in networks["transformer"].transformer_blocks[0].parameters())
    # Outside the blocks all weights stay gathered; of the blocks two do, and the gradients of one wait for the others.
    gathered = 2 * (p - networks["transformer"].config.num_layers * block) + (2 * 2 + 4) * block
    return {
        # Weights, gradients, moments (2 bytes if in 8 bits), average (none), autocast's copies.
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
    print("| config | as it is, GB | fits on | saving memory, GB | fits on | CPU, GB |\n|---|---|---|---|---|---|")
    for name, (full, frugal, host) in setups(networks).items():
        totals = (full + frozen + plain + RESERVE, frugal + checkpointed + RESERVE)
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
        "all, with CUDA's part": sum(fixed) + plain,
        "with --gradient_checkpointing": sum(fixed) + checkpointed,
        "and --quantization bnb_8bit": sum(fixed) + checkpointed - base,
        "and --quantization bnb_4bit": sum(fixed) + checkpointed - 1.5 * base,
    }.items():
        print(f"| **{name}** | **{(total + RESERVE) / 1e9:.1f}** |")


def add_lora(model: torch.nn.Module, targets: list[str], rank: int) -> int:
    """Add layers to a model; returns how many parameters they have."""
    device = next(model.parameters()).device
    with torch.device(device):
        inject_adapter_in_model(LoraConfig(r=rank, target_modules=targets), model)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)


def card(total: float) -> str:
    return next((f"{size} GB" for size in CARDS if total <= size * 1e9), "none")


def saved_bytes(block: Callable, hidden_states: torch.Tensor) -> int:
    """Bytes of the storages that autograd keeps, under autocast with CUDA's rule that a LayerNorm is float32."""
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


def measured_to_paper(blocks: dict[int, Callable], tokens: int, d: int) -> list[str]:
    samples = [torch.randn(size, tokens, d, dtype=torch.bfloat16, requires_grad=True) for size in (1, 2)]
    ratios = []
    for paper, block in blocks.items():
        one, two = (saved_bytes(block, sample) for sample in samples)
        ratios.append(f"{(two - one) / paper:.2f}")
    return ratios


def check() -> None:
    """Print measured / paper at a small size. What does not grow with the batch, such as weights, drops out."""
    tokens, context, d, f = 120, 200, 256, 640
    angles = (torch.zeros(tokens, 32),) * 2
    # What all blocks are given is not counted: it does not grow with the batch here.
    shared = torch.randn(2, context, d, dtype=torch.bfloat16, requires_grad=True)
    dit, mmdit = AudioXTransformerBlock(d, 4, 2, 64, d, 4), AudioXMMTransformerBlock(d, 8, f)
    blocks = {
        encoder_block(tokens, d, 384): AudioXEncoderBlock(d, 6, 64),
        dit_block(tokens, d, context): lambda x: dit(x, shared[: len(x)], angles),
        mmdit_block(tokens, d, f): lambda x: mmdit(x, shared[: len(x), :tokens], shared[: len(x), 0], angles),
    }
    ratios = measured_to_paper(blocks, tokens, d)
    print(f"activations, measured / paper: encoder block {ratios[0]}, DiT block {ratios[1]}, MMDiT block {ratios[2]}")


def check_lora() -> None:
    """The same for blocks with an adapter."""
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
    ratios = measured_to_paper(blocks, tokens, d)
    print(f"with an adapter, measured / paper: DiT block {ratios[0]}, MMDiT block {ratios[1]}")


if __name__ == "__main__":
    check()
    check_lora()
    for release in ("audiox", "audiox-maf-mmdit"):
        table(release)
    for release in ("audiox", "audiox-maf-mmdit"):
        lora_table(release)
