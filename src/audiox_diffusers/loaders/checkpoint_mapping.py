"""Where every tensor of a released AudioX checkpoint belongs: pure mapping of names, no files."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

_VIDEO = r"conditioner\.conditioners\.video_prompt\."
_AUDIO = r"conditioner\.conditioners\.audio_prompt\."
_TEMPORAL = _VIDEO + r"Temp_transformer\.layers\.(\d+)\."
_BLOCK = r"model\.model\.transformer\.layers\.(\d+)\."
_EXPERTS = r"maf_block\.fusion_transformer\.layers\.(\d+)\."
# Layers of a half; of a block of it; of a residual unit of that.
_VAE = (
    r"pretransform\.model\.(encoder|decoder)\.layers\."
    r"(\d+(?:\.layers\.[0-4](?:\.layers\.[0-3])?)?\.(?:alpha|beta|bias|weight_g|weight_v))"
)


class _Rule(NamedTuple):
    """
    Where the tensors of a pattern go: a component, and names in it. Where one tensor becomes several it is cut into
    equal parts along its first axis, or, `interleaved`, its rows are dealt out in turn; a name `None` is unused.
    """

    component: str
    pattern: str
    targets: list[str | None]
    interleaved: bool = False


def _to(prefix: str, parts: str = "qkv", suffix: str = "weight") -> list[str]:
    return [rf"{prefix}.to_{part}.{suffix}" for part in parts]


_SHARED_RULES = [
    _Rule("transformer", r"model\.model\.timestep_features\.weight", ["time_proj.weight"]),
    _Rule("transformer", r"model\.model\.to_timestep_embed\.0\.(\w+)", [r"time_embed.linear_1.\1"]),
    _Rule("transformer", r"model\.model\.to_timestep_embed\.2\.(\w+)", [r"time_embed.linear_2.\1"]),
    _Rule("transformer", r"model\.model\.(preprocess_conv|postprocess_conv)\.weight", [r"\1.weight"]),
    _Rule("transformer", r"model\.model\.transformer\.project_(in|out)\.weight", [r"proj_\1.weight"]),
    _Rule("image_encoder", _VIDEO + r"visual_encoder_model\.(.+)", [r"\1"]),
    _Rule("conditioner", _VIDEO + r"empty_visual_feat", ["video_proj.empty_embedding"]),
    _Rule("conditioner", _VIDEO + r"Temp_pos_embedding", ["video_proj.temporal_embedding"]),
    _Rule("conditioner", _VIDEO + r"(proj|proj_sync)\.(\w+)", [r"video_proj.\1.\2"]),
    _Rule("conditioner", _VIDEO + r"sync_weight", ["video_proj.sync_weight"]),
    _Rule("conditioner", _TEMPORAL + r"0\.norm\.(\w+)", [r"video_proj.temporal_blocks.\1.norm1.\2"]),
    _Rule("conditioner", _TEMPORAL + r"0\.fn\.to_qkv\.weight", _to(r"video_proj.temporal_blocks.\1.attn1")),
    _Rule("conditioner", _TEMPORAL + r"0\.fn\.to_out\.0\.(\w+)", [r"video_proj.temporal_blocks.\1.attn1.to_out.0.\2"]),
    _Rule("conditioner", _TEMPORAL + r"1\.norm\.(\w+)", [r"video_proj.temporal_blocks.\1.norm2.\2"]),
    _Rule("conditioner", _TEMPORAL + r"1\.fn\.net\.0\.(\w+)", [r"video_proj.temporal_blocks.\1.ff.net.0.proj.\2"]),
    _Rule("conditioner", _TEMPORAL + r"1\.fn\.net\.3\.(\w+)", [r"video_proj.temporal_blocks.\1.ff.net.2.\2"]),
    _Rule("conditioner", _VIDEO + r"Temp_transformer\.norm\.(\w+)", [r"video_proj.norm_out.\1"]),
    _Rule("conditioner", _AUDIO + r"empty_audio_feat", ["audio_proj.empty_embedding"]),
    _Rule("conditioner", _AUDIO + r"proj_out\.(\w+)", [r"audio_proj.proj.\1"]),
    _Rule("conditioner", _AUDIO + r"proj_features\.(\w+)", [r"audio_proj.proj.\1"]),
    _Rule("conditioner", _AUDIO + r"proj_features_128\.(\w+)", [r"audio_proj.proj_time.\1"]),
    _Rule("conditioner", r"maf_block\.unified_experts", ["fusion.experts"]),
    _Rule("conditioner", r"maf_block\.gating_network\.0\.(\w+)", [r"fusion.gate_in.\1"]),
    _Rule("conditioner", r"maf_block\.gating_network\.2\.(\w+)", [r"fusion.gate_out.\1"]),
    _Rule("conditioner", r"maf_block\.cross_attn\.in_proj_(weight|bias)", _to("fusion.attn", suffix=r"\1")),
    _Rule("conditioner", r"maf_block\.cross_attn\.out_proj\.(\w+)", [r"fusion.attn.to_out.0.\1"]),
    _Rule("conditioner", r"maf_block\.norm1\.(\w+)", [r"fusion.norm.\1"]),
    _Rule("conditioner", _EXPERTS + r"(norm[12])\.(\w+)", [r"fusion.blocks.\1.\2.\3"]),
    _Rule("conditioner", _EXPERTS + r"self_attn\.in_proj_(weight|bias)", _to(r"fusion.blocks.\1.attn1", suffix=r"\2")),
    _Rule("conditioner", _EXPERTS + r"self_attn\.out_proj\.(\w+)", [r"fusion.blocks.\1.attn1.to_out.0.\2"]),
    _Rule("conditioner", _EXPERTS + r"linear1\.(\w+)", [r"fusion.blocks.\1.ff.net.0.proj.\2"]),
    _Rule("conditioner", _EXPERTS + r"linear2\.(\w+)", [r"fusion.blocks.\1.ff.net.2.\2"]),
    _Rule("conditioner", r"maf_block\.bypass_gate_v", ["fusion.bypass_gate_0"]),
    _Rule("conditioner", r"maf_block\.bypass_gate_t", ["fusion.bypass_gate_1"]),
    _Rule("conditioner", r"maf_block\.bypass_gate_a", ["fusion.bypass_gate_2"]),
    _Rule("conditioner", r"maf_block\.norm_v2\.(\w+)", [r"fusion.norm_out.0.\1"]),
    _Rule("conditioner", r"maf_block\.norm_t2\.(\w+)", [r"fusion.norm_out.1.\1"]),
    _Rule("conditioner", r"maf_block\.norm_a2\.(\w+)", [r"fusion.norm_out.2.\1"]),
    _Rule("vae", _VAE, [r"\1.layers.\2"]),
]

_DIT_RULES = [
    _Rule("transformer", r"model\.model\.to_cond_embed\.0\.weight", ["context_embed.linear_1.weight"]),
    _Rule("transformer", r"model\.model\.to_cond_embed\.2\.weight", ["context_embed.linear_2.weight"]),
    _Rule("transformer", _BLOCK + r"pre_norm\.gamma", [r"transformer_blocks.\1.norm1.weight"]),
    _Rule("transformer", _BLOCK + r"self_attn\.to_qkv\.weight", _to(r"transformer_blocks.\1.attn1")),
    _Rule("transformer", _BLOCK + r"self_attn\.to_out\.weight", [r"transformer_blocks.\1.attn1.to_out.0.weight"]),
    _Rule("transformer", _BLOCK + r"cross_attend_norm\.gamma", [r"transformer_blocks.\1.norm2.weight"]),
    _Rule("transformer", _BLOCK + r"cross_attn\.to_q\.weight", [r"transformer_blocks.\1.attn2.to_q.weight"]),
    _Rule("transformer", _BLOCK + r"cross_attn\.to_kv\.weight", _to(r"transformer_blocks.\1.attn2", "kv")),
    _Rule("transformer", _BLOCK + r"cross_attn\.to_out\.weight", [r"transformer_blocks.\1.attn2.to_out.0.weight"]),
    _Rule("transformer", _BLOCK + r"ff_norm\.gamma", [r"transformer_blocks.\1.norm3.weight"]),
    _Rule("transformer", _BLOCK + r"ff\.ff\.0\.proj\.(\w+)", [r"transformer_blocks.\1.ff.net.0.proj.\2"]),
    _Rule("transformer", _BLOCK + r"ff\.ff\.2\.(\w+)", [r"transformer_blocks.\1.ff.net.2.\2"]),
]

_MMDIT_RULES = [
    _Rule("transformer", r"model\.model\.transformer\.proj_mm_tokens\.(\w+)", [r"context_embed.\1"]),
    _Rule("transformer", r"model\.model\.transformer\.proj_mm_seq_len\.(\w+)", [r"context_to_positions.\1"]),
    _Rule("transformer", _BLOCK + r"adaLN_modulation\.1\.(\w+)", [r"transformer_blocks.\1.modulation.\2"]),
    _Rule(
        "transformer",
        _BLOCK + r"attn\.qkv\.(\w+)",
        _to(r"transformer_blocks.\1.attn1", suffix=r"\2"),
        interleaved=True,
    ),
    _Rule("transformer", _BLOCK + r"linear1\.(\w+)", [r"transformer_blocks.\1.attn1.to_out.\2"]),
    _Rule(
        "transformer",
        _BLOCK + r"cross_attn\.to_kv\.weight",
        [r"transformer_blocks.\1.to_time.weight", None],  # attention to one token: its value alone counts
        interleaved=True,
    ),
    _Rule("transformer", _BLOCK + r"ffn\.w1\.weight", [r"transformer_blocks.\1.ff_gate.weight"]),
    _Rule("transformer", _BLOCK + r"ffn\.w2\.weight", [r"transformer_blocks.\1.ff_out.weight"]),
    _Rule("transformer", _BLOCK + r"ffn\.w3\.weight", [r"transformer_blocks.\1.ff_in.weight"]),
]

# Known to be unused, with the reason.
_SHARED_UNUSED = [
    r"model\.model\.to_global_embed\.[02]\.weight",  # nothing is given globally
    _AUDIO + r"pretransform\.model\..+",  # the VAE a second time
]
_DIT_UNUSED = [
    r"model\.model\.transformer\.rotary_pos_emb\.inv_freq",  # a constant
    _BLOCK + r"(pre_norm|cross_attend_norm|ff_norm)\.beta",  # a buffer of zeros
]
_MMDIT_UNUSED = [
    r"model\.model\.to_cond_embed\.[02]\.weight",  # the context has projections of its own
    _BLOCK + r"cross_attn\.to_q\.weight",  # attention to one token asks no question
]

_MMDIT_KEY = "model.model.transformer.proj_mm_tokens.weight"
_COMPONENTS = ("transformer", "conditioner", "image_encoder", "vae")


def is_mmdit(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether a released checkpoint holds the multi-modal transformer."""
    return _MMDIT_KEY in state_dict


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """
    Sort the tensors of a released AudioX checkpoint into components, under the names these use.

    Args:
        state_dict: tensors by their released names; meta tensors will do. They are viewed, not copied, but for those
            whose rows are interleaved.

    Returns:
        A state dict for each of `transformer`, `conditioner`, `image_encoder` and `vae`, the last with weight norm.

    Raises:
        ValueError: naming the tensors that have no place, or that stand for a constant and differ from it.
    """
    mmdit = is_mmdit(state_dict)
    rules = mapping_rules(mmdit)
    unused = _SHARED_UNUSED + (_MMDIT_UNUSED if mmdit else _DIT_UNUSED)
    components: dict[str, dict[str, torch.Tensor]] = {name: {} for name in _COMPONENTS}
    left_over = []
    for key, tensor in state_dict.items():
        for rule in rules:
            if match := re.fullmatch(rule.pattern, key):
                for target, part in zip(
                    rule.targets, split_rows(tensor, len(rule.targets), rule.interleaved), strict=True
                ):
                    if target is not None:
                        components[rule.component][match.expand(target)] = part
                break
        else:
            if not any(re.fullmatch(pattern, key) for pattern in unused):
                left_over.append(key)
    if left_over:
        raise ValueError(f"not an AudioX checkpoint: no place for {_some(left_over)}")
    _check_unused(state_dict)
    components["vae"] = _rename_vae(components["vae"])
    return components


def released_name(component: str, name: str, mmdit: bool) -> str:
    """What a tensor of a component is called in a released checkpoint; `name` itself for those of the VAE."""
    rules = mapping_rules(mmdit)
    for rule in rules:
        if rule.component != component or component == "vae":
            continue
        groups = re.findall(r"\((?!\?)([^()]*)\)", rule.pattern)
        for target in rule.targets:
            if target is None:
                continue
            template = re.sub(r"\\\\(\d)", lambda number: f"({groups[int(number[1]) - 1]})", re.escape(target))  # noqa: B023
            if match := re.fullmatch(template, name):
                values = iter(match.groups())
                return re.sub(r"\((?!\?)[^()]*\)", lambda _: next(values), rule.pattern).replace("\\", "")  # noqa: B023
    return name


def mapping_rules(mmdit: bool) -> list[_Rule]:
    """Return the rules that map the names of a released checkpoint, with or without the multimodal transformer."""
    return _SHARED_RULES + (_MMDIT_RULES if mmdit else _DIT_RULES)


def split_rows(tensor: torch.Tensor, count: int, interleaved: bool) -> Iterable[torch.Tensor]:
    """Split the rows of a tensor into `count` equal parts."""
    if count == 1:
        return [tensor]
    return (tensor[i::count].contiguous() for i in range(count)) if interleaved else tensor.chunk(count)


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _check_unused(state_dict: Mapping[str, torch.Tensor]) -> None:
    """What is left out must be what it is taken for; of the second VAE the vectors are compared, not the matrices."""
    wrong = []
    for key, tensor in state_dict.items():
        if tensor.is_meta:
            continue
        if key.endswith(".beta") and key.startswith("model."):
            if tensor.any():
                wrong.append(key)
        elif key.endswith(".inv_freq"):
            expected = 10000.0 ** -(torch.arange(len(tensor)) / len(tensor))
            if not torch.allclose(tensor.float(), expected, rtol=1e-2):
                wrong.append(key)
        elif key.startswith("conditioner.conditioners.audio_prompt.pretransform.") and tensor.squeeze().ndim == 1:
            first = state_dict.get(key.removeprefix("conditioner.conditioners.audio_prompt."))
            if first is not None and not torch.equal(tensor, first):
                wrong.append(key)
    if wrong:
        raise ValueError(f"not an AudioX checkpoint: {_some(wrong)} should be unused, but cannot be left out")


def _rename_vae(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the layers of both halves of the VAE as diffusers does, and shape snake's parameters `[1, C, 1]`."""
    units = {"0": "snake1", "1": "conv1", "2": "snake2", "3": "conv2"}
    blocks = {
        "encoder": {"0": "res_unit1", "1": "res_unit2", "2": "res_unit3", "3": "snake1", "4": "conv1"},
        "decoder": {"0": "snake1", "1": "conv_t1", "2": "res_unit1", "3": "res_unit2", "4": "res_unit3"},
    }
    last_layer = {
        half: max((int(key.split(".")[2]) for key in state_dict if key.startswith(half)), default=0) for half in blocks
    }

    renamed = {}
    for key, tensor in state_dict.items():
        half, _, layer, *path, name = key.split(".")
        index, last = int(layer), last_layer[half]
        parts = [half, {0: "conv1", last - 1: "snake1", last: "conv2"}.get(index, f"block.{index - 1}")]
        if path:
            parts.append(blocks[half][path[1]])
        if len(path) > 2:
            parts.append(units[path[3]])
        renamed[".".join([*parts, name])] = tensor[None, :, None] if name in ("alpha", "beta") else tensor
    return renamed


def fold_weight_norm(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace each pair `weight_g` (g), `weight_v` (v) by `weight = g * v / |v|`, norm over all but the first axis."""
    folded = {}
    for key, tensor in state_dict.items():
        if key.endswith("weight_v"):
            if key[:-1] + "g" not in state_dict:
                raise ValueError(f"not an AudioX checkpoint: it lacks the weight_g of pretransform.model.{key}")
            gain = state_dict[key[:-1] + "g"].float()
            norm = torch.linalg.vector_norm(tensor.float(), dim=(1, 2), keepdim=True)
            folded[key.removesuffix("_v")] = (tensor.float() * (gain / norm)).to(tensor.dtype)
        elif not key.endswith("weight_g"):
            folded[key] = tensor
    return folded


def convert_vae_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of a file with the VAE alone, under whatever prefix its halves stand there, renamed as in
    [`convert_state_dict`]; without halves it is empty.

    Raises:
        ValueError: if there are halves under several prefixes.
    """
    pattern = r"(.*\.)?((?:encoder|decoder)\.layers\..+)"
    matches = {key: match for key in state_dict if (match := re.fullmatch(pattern, key))}
    prefixes = {match[1] or "" for match in matches.values()}
    if len(prefixes) > 1:
        raise ValueError(f"the file holds several VAEs, under the prefixes {', '.join(sorted(prefixes))}")
    return _rename_vae({match[2]: state_dict[key] for key, match in matches.items()})


def convert_synchformer_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of Synchformer's visual tower (`vfeat_extractor.*`) under the names of `SynchformerVisionModel`. The
    other parts of a Synchformer file are left out, and `patch_embed`, a second patch embedding that nothing uses.

    Raises:
        ValueError: naming tensors of the tower that have no place, or if there is none.
    """
    block, pool = r"blocks\.(\d+)\.", r"spatial_attn_agg\."
    renames = {
        r"patch_embed_3d\.proj\.(\w+)": [r"patch_embed.\1"],
        r"cls_token": ["class_embed"],
        r"norm\.(\w+)": [r"norm_out.\1"],
        block + r"norm3\.(\w+)": [r"blocks.\1.norm_time.\2"],
        block + r"norm1\.(\w+)": [r"blocks.\1.norm_space.\2"],
        block + r"norm2\.(\w+)": [r"blocks.\1.norm_ff.\2"],
        block + r"timeattn\.qkv\.(\w+)": _to(r"blocks.\1.attn_time", suffix=r"\2"),
        block + r"timeattn\.proj\.(\w+)": [r"blocks.\1.attn_time.to_out.0.\2"],
        block + r"attn\.qkv\.(\w+)": _to(r"blocks.\1.attn_space", suffix=r"\2"),
        block + r"attn\.proj\.(\w+)": [r"blocks.\1.attn_space.to_out.0.\2"],
        block + r"mlp\.fc1\.(\w+)": [r"blocks.\1.ff.net.0.proj.\2"],
        block + r"mlp\.fc2\.(\w+)": [r"blocks.\1.ff.net.2.\2"],
        pool + r"cls_token": ["pool_class_embed"],
        pool + r"(norm[12])\.(\w+)": [r"pool.\1.\2"],
        pool + r"self_attn\.in_proj_(\w+)": _to("pool.attn1", suffix=r"\1"),
        pool + r"self_attn\.out_proj\.(\w+)": [r"pool.attn1.to_out.0.\1"],
        pool + r"linear1\.(\w+)": [r"pool.ff.net.0.proj.\1"],
        pool + r"linear2\.(\w+)": [r"pool.ff.net.2.\1"],
    }
    prefix = "vfeat_extractor."
    converted, left_over = {}, []
    for key, tensor in state_dict.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith("patch_embed."):
            continue
        if name == "pos_embed":
            converted["class_position_embed"] = tensor[:, :1]
            converted["space_position_embed"] = tensor[:, None, 1:]
        elif name == "temp_embed":
            converted["time_position_embed"] = tensor[:, :, None]
        else:
            for pattern, targets in renames.items():
                if match := re.fullmatch(pattern, name):
                    for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
                        converted[match.expand(target)] = part
                    break
            else:
                left_over.append(key)
    lacking = {"patch_embed.weight", "space_position_embed", "time_position_embed"} - converted.keys()
    if converted and not left_over and lacking:
        raise ValueError(f"not a Synchformer checkpoint: it lacks what makes {_some(lacking)}")
    if left_over or not converted:
        raise ValueError(f"not a Synchformer checkpoint: no place for {_some(left_over or state_dict)}")
    return converted
