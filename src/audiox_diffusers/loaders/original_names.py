"""Names of the tensors in the released AudioX checkpoints, and in the components of this package."""

import re
import string
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

# What a field of a name template stands for.
_FIELDS = {"i": r"\d+", "p": r"weight|bias", "rest": r".+"}

VIDEO = "conditioner.conditioners.video_prompt."
AUDIO = "conditioner.conditioners.audio_prompt."
VAE = "pretransform.model."
_TEMPORAL = VIDEO + "Temp_transformer.layers.{i}."
_TEMPORAL_BLOCK = "video_proj.temporal_blocks.{i}."
_EXPERTS = "maf_block.fusion_transformer.layers.{i}."
_LAYER = "model.model.transformer.layers.{i}."
_BLOCK = "transformer_blocks.{i}."

INV_FREQ = "model.model.transformer.rotary_pos_emb.inv_freq"
GLOBAL_EMBED = ["model.model.to_global_embed.0.weight", "model.model.to_global_embed.2.weight"]
CONTEXT_EMBED = ["model.model.to_cond_embed.0.weight", "model.model.to_cond_embed.2.weight"]
MMDIT_QUERY = _LAYER + "cross_attn.to_q.weight"


class Rule(NamedTuple):
    """
    The place of a released tensor.

    Args:
        component (`str`): Component that it belongs to.
        released (`str`): Template of its released name. `{i}` stands for a number, `{p}` for `weight` or `bias`.
        names (`tuple`): Templates of its names in the component. A tensor with several names is split into equal
            parts along its first axis. A part named `None` is unused.
        interleaved (`bool`): Whether the rows of the parts alternate instead.
    """

    component: str
    released: str
    names: tuple[str | None, ...]
    interleaved: bool = False


def _transformer(released: str, *names: str | None, interleaved: bool = False) -> Rule:
    return Rule("transformer", released, names, interleaved)


def _conditioner(released: str, *names: str) -> Rule:
    return Rule("conditioner", released, names)


def _to(prefix: str, parts: str = "qkv", suffix: str = "weight") -> list[str]:
    return [f"{prefix}.to_{part}.{suffix}" for part in parts]


_SHARED = [
    _transformer("model.model.timestep_features.weight", "time_proj.weight"),
    _transformer("model.model.to_timestep_embed.0.{p}", "time_embed.linear_1.{p}"),
    _transformer("model.model.to_timestep_embed.2.{p}", "time_embed.linear_2.{p}"),
    _transformer("model.model.preprocess_conv.weight", "preprocess_conv.weight"),
    _transformer("model.model.postprocess_conv.weight", "postprocess_conv.weight"),
    _transformer("model.model.transformer.project_in.weight", "proj_in.weight"),
    _transformer("model.model.transformer.project_out.weight", "proj_out.weight"),
    Rule("image_encoder", VIDEO + "visual_encoder_model.{rest}", ("{rest}",)),
    _conditioner(VIDEO + "empty_visual_feat", "video_proj.empty_embedding"),
    _conditioner(VIDEO + "Temp_pos_embedding", "video_proj.temporal_embedding"),
    _conditioner(VIDEO + "proj.{p}", "video_proj.proj.{p}"),
    _conditioner(VIDEO + "proj_sync.{p}", "video_proj.proj_sync.{p}"),
    _conditioner(VIDEO + "sync_weight", "video_proj.sync_weight"),
    _conditioner(_TEMPORAL + "0.norm.{p}", _TEMPORAL_BLOCK + "norm1.{p}"),
    _conditioner(_TEMPORAL + "0.fn.to_qkv.weight", *_to(_TEMPORAL_BLOCK + "attn1")),
    _conditioner(_TEMPORAL + "0.fn.to_out.0.{p}", _TEMPORAL_BLOCK + "attn1.to_out.0.{p}"),
    _conditioner(_TEMPORAL + "1.norm.{p}", _TEMPORAL_BLOCK + "norm2.{p}"),
    _conditioner(_TEMPORAL + "1.fn.net.0.{p}", _TEMPORAL_BLOCK + "ff.net.0.proj.{p}"),
    _conditioner(_TEMPORAL + "1.fn.net.3.{p}", _TEMPORAL_BLOCK + "ff.net.2.{p}"),
    _conditioner(VIDEO + "Temp_transformer.norm.{p}", "video_proj.norm_out.{p}"),
    _conditioner("maf_block.unified_experts", "fusion.experts"),
    _conditioner("maf_block.gating_network.0.{p}", "fusion.gate_in.{p}"),
    _conditioner("maf_block.gating_network.2.{p}", "fusion.gate_out.{p}"),
    _conditioner("maf_block.cross_attn.in_proj_{p}", *_to("fusion.attn", suffix="{p}")),
    _conditioner("maf_block.cross_attn.out_proj.{p}", "fusion.attn.to_out.0.{p}"),
    _conditioner("maf_block.norm1.{p}", "fusion.norm.{p}"),
    _conditioner(_EXPERTS + "norm1.{p}", "fusion.blocks.{i}.norm1.{p}"),
    _conditioner(_EXPERTS + "norm2.{p}", "fusion.blocks.{i}.norm2.{p}"),
    _conditioner(_EXPERTS + "self_attn.in_proj_{p}", *_to("fusion.blocks.{i}.attn1", suffix="{p}")),
    _conditioner(_EXPERTS + "self_attn.out_proj.{p}", "fusion.blocks.{i}.attn1.to_out.0.{p}"),
    _conditioner(_EXPERTS + "linear1.{p}", "fusion.blocks.{i}.ff.net.0.proj.{p}"),
    _conditioner(_EXPERTS + "linear2.{p}", "fusion.blocks.{i}.ff.net.2.{p}"),
    _conditioner("maf_block.bypass_gate_v", "fusion.bypass_gate_0"),
    _conditioner("maf_block.bypass_gate_t", "fusion.bypass_gate_1"),
    _conditioner("maf_block.bypass_gate_a", "fusion.bypass_gate_2"),
    _conditioner("maf_block.norm_v2.{p}", "fusion.norm_out.0.{p}"),
    _conditioner("maf_block.norm_t2.{p}", "fusion.norm_out.1.{p}"),
    _conditioner("maf_block.norm_a2.{p}", "fusion.norm_out.2.{p}"),
]

_MEL = [_conditioner(AUDIO + "proj_features.{p}", "audio_proj.proj.{p}")]

_LATENTS = [
    _conditioner(AUDIO + "empty_audio_feat", "audio_proj.empty_embedding"),
    _conditioner(AUDIO + "proj_out.{p}", "audio_proj.proj.{p}"),
    _conditioner(AUDIO + "proj_features_128.{p}", "audio_proj.proj_time.{p}"),
]

_DIT = [
    _transformer(CONTEXT_EMBED[0], "context_embed.linear_1.weight"),
    _transformer(CONTEXT_EMBED[1], "context_embed.linear_2.weight"),
    _transformer(_LAYER + "pre_norm.gamma", _BLOCK + "norm1.weight"),
    _transformer(_LAYER + "self_attn.to_qkv.weight", *_to(_BLOCK + "attn1")),
    _transformer(_LAYER + "self_attn.to_out.weight", _BLOCK + "attn1.to_out.0.weight"),
    _transformer(_LAYER + "cross_attend_norm.gamma", _BLOCK + "norm2.weight"),
    _transformer(_LAYER + "cross_attn.to_q.weight", _BLOCK + "attn2.to_q.weight"),
    _transformer(_LAYER + "cross_attn.to_kv.weight", *_to(_BLOCK + "attn2", "kv")),
    _transformer(_LAYER + "cross_attn.to_out.weight", _BLOCK + "attn2.to_out.0.weight"),
    _transformer(_LAYER + "ff_norm.gamma", _BLOCK + "norm3.weight"),
    _transformer(_LAYER + "ff.ff.0.proj.{p}", _BLOCK + "ff.net.0.proj.{p}"),
    _transformer(_LAYER + "ff.ff.2.{p}", _BLOCK + "ff.net.2.{p}"),
]

_MMDIT = [
    _transformer("model.model.transformer.proj_mm_tokens.{p}", "context_embed.{p}"),
    _transformer("model.model.transformer.proj_mm_seq_len.{p}", "context_to_positions.{p}"),
    _transformer(_LAYER + "adaLN_modulation.1.{p}", _BLOCK + "modulation.{p}"),
    _transformer(_LAYER + "attn.qkv.{p}", *_to(_BLOCK + "attn1", suffix="{p}"), interleaved=True),
    _transformer(_LAYER + "linear1.{p}", _BLOCK + "attn1.to_out.{p}"),
    # Attention to a single token returns the value of that token, whatever the key.
    _transformer(_LAYER + "cross_attn.to_kv.weight", _BLOCK + "to_time.weight", None, interleaved=True),
    _transformer(_LAYER + "ffn.w1.weight", _BLOCK + "ff_gate.weight"),
    _transformer(_LAYER + "ffn.w2.weight", _BLOCK + "ff_out.weight"),
    _transformer(_LAYER + "ffn.w3.weight", _BLOCK + "ff_in.weight"),
]

SYNCHFORMER = "vfeat_extractor."
_SYNC_BLOCK = SYNCHFORMER + "blocks.{i}."
_SYNC_POOL = SYNCHFORMER + "spatial_attn_agg."


def _sync(released: str, *names: str) -> Rule:
    return Rule("sync_encoder", released, names)


SYNCHFORMER_RULES = [
    _sync(SYNCHFORMER + "patch_embed_3d.proj.{p}", "patch_embed.{p}"),
    _sync(SYNCHFORMER + "cls_token", "class_embed"),
    _sync(SYNCHFORMER + "norm.{p}", "norm_out.{p}"),
    _sync(_SYNC_BLOCK + "norm3.{p}", "blocks.{i}.norm_time.{p}"),
    _sync(_SYNC_BLOCK + "norm1.{p}", "blocks.{i}.norm_space.{p}"),
    _sync(_SYNC_BLOCK + "norm2.{p}", "blocks.{i}.norm_ff.{p}"),
    _sync(_SYNC_BLOCK + "timeattn.qkv.{p}", *_to("blocks.{i}.attn_time", suffix="{p}")),
    _sync(_SYNC_BLOCK + "timeattn.proj.{p}", "blocks.{i}.attn_time.to_out.0.{p}"),
    _sync(_SYNC_BLOCK + "attn.qkv.{p}", *_to("blocks.{i}.attn_space", suffix="{p}")),
    _sync(_SYNC_BLOCK + "attn.proj.{p}", "blocks.{i}.attn_space.to_out.0.{p}"),
    _sync(_SYNC_BLOCK + "mlp.fc1.{p}", "blocks.{i}.ff.net.0.proj.{p}"),
    _sync(_SYNC_BLOCK + "mlp.fc2.{p}", "blocks.{i}.ff.net.2.{p}"),
    _sync(_SYNC_POOL + "cls_token", "pool_class_embed"),
    _sync(_SYNC_POOL + "norm1.{p}", "pool.norm1.{p}"),
    _sync(_SYNC_POOL + "norm2.{p}", "pool.norm2.{p}"),
    _sync(_SYNC_POOL + "self_attn.in_proj_{p}", *_to("pool.attn1", suffix="{p}")),
    _sync(_SYNC_POOL + "self_attn.out_proj.{p}", "pool.attn1.to_out.0.{p}"),
    _sync(_SYNC_POOL + "linear1.{p}", "pool.ff.net.0.proj.{p}"),
    _sync(_SYNC_POOL + "linear2.{p}", "pool.ff.net.2.{p}"),
]


def rules(mmdit: bool, mel: bool) -> list[Rule]:
    """Return the rules of a release, by its transformer and its audio conditioner."""
    return _SHARED + (_MEL if mel else _LATENTS) + (_MMDIT if mmdit else _DIT)


def unused(mmdit: bool) -> list[str]:
    """Return templates of the names of released tensors that nothing uses."""
    if mmdit:
        return [*GLOBAL_EMBED, *CONTEXT_EMBED, MMDIT_QUERY]
    return [
        *GLOBAL_EMBED,
        INV_FREQ,
        *(_LAYER + f"{norm}.beta" for norm in ("pre_norm", "cross_attend_norm", "ff_norm")),
    ]


def vae_layers(num_blocks: int) -> dict[str, str]:
    """Map the released layers of the VAE's encoder and decoder to those of diffusers."""
    unit = ["snake1", "conv1", "snake2", "conv2"]
    blocks = {
        "encoder": ["res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"],
        "decoder": ["snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"],
    }
    layers = {}
    for half, parts in blocks.items():
        layers[f"{half}.layers.0"] = f"{half}.conv1"
        layers[f"{half}.layers.{num_blocks + 1}"] = f"{half}.snake1"
        layers[f"{half}.layers.{num_blocks + 2}"] = f"{half}.conv2"
        for block in range(num_blocks):
            for j, part in enumerate(parts):
                released, name = f"{half}.layers.{block + 1}.layers.{j}", f"{half}.block.{block}.{part}"
                if part.startswith("res_unit"):
                    layers |= {f"{released}.layers.{k}": f"{name}.{layer}" for k, layer in enumerate(unit)}
                else:
                    layers[released] = name
    return layers


@cache
def _pattern(template: str) -> re.Pattern:
    pieces = string.Formatter().parse(template)
    return re.compile("".join(re.escape(text) + (f"(?P<{f}>{_FIELDS[f]})" if f else "") for text, f, _, _ in pieces))


def match(template: str, name: str) -> Mapping[str, str] | None:
    """Return the fields with which `template.format(**fields)` is `name`, or `None`."""
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()
