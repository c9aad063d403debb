"""Where every tensor of a released AudioX checkpoint belongs: pure mapping of names, no files."""

import re
from collections.abc import Iterable, Mapping

import torch

_BLOCK = r"model\.model\.transformer\.layers\.(\d+)\."
_VIDEO = r"conditioner\.conditioners\.video_prompt\."
_AUDIO = r"conditioner\.conditioners\.audio_prompt\."
_TEMPORAL = _VIDEO + r"Temp_transformer\.layers\.(\d+)\."

# Layers of a half; of a block of it; of a residual unit of that.
_VAE = (
    r"pretransform\.model\.(encoder|decoder)\.layers\."
    r"(\d+(?:\.layers\.[0-4](?:\.layers\.[0-3])?)?\.(?:alpha|beta|bias|weight_g|weight_v))"
)

# (component, pattern of the released name, names in the component). Where one tensor becomes several, it is cut into
# as many equal parts along its first dimension.
_RULES = [
    ("transformer", r"model\.model\.timestep_features\.weight", [r"time_proj.weight"]),
    ("transformer", r"model\.model\.to_timestep_embed\.0\.(\w+)", [r"time_embed.linear_1.\1"]),
    ("transformer", r"model\.model\.to_timestep_embed\.2\.(\w+)", [r"time_embed.linear_2.\1"]),
    ("transformer", r"model\.model\.to_cond_embed\.0\.weight", [r"context_embed.linear_1.weight"]),
    ("transformer", r"model\.model\.to_cond_embed\.2\.weight", [r"context_embed.linear_2.weight"]),
    ("transformer", r"model\.model\.(preprocess_conv|postprocess_conv)\.weight", [r"\1.weight"]),
    ("transformer", r"model\.model\.transformer\.project_(in|out)\.weight", [r"proj_\1.weight"]),
    ("transformer", _BLOCK + r"pre_norm\.gamma", [r"transformer_blocks.\1.norm1.weight"]),
    (
        "transformer",
        _BLOCK + r"self_attn\.to_qkv\.weight",
        [rf"transformer_blocks.\1.attn1.to_{part}.weight" for part in "qkv"],
    ),
    ("transformer", _BLOCK + r"self_attn\.to_out\.weight", [r"transformer_blocks.\1.attn1.to_out.0.weight"]),
    ("transformer", _BLOCK + r"cross_attend_norm\.gamma", [r"transformer_blocks.\1.norm2.weight"]),
    ("transformer", _BLOCK + r"cross_attn\.to_q\.weight", [r"transformer_blocks.\1.attn2.to_q.weight"]),
    (
        "transformer",
        _BLOCK + r"cross_attn\.to_kv\.weight",
        [rf"transformer_blocks.\1.attn2.to_{part}.weight" for part in "kv"],
    ),
    ("transformer", _BLOCK + r"cross_attn\.to_out\.weight", [r"transformer_blocks.\1.attn2.to_out.0.weight"]),
    ("transformer", _BLOCK + r"ff_norm\.gamma", [r"transformer_blocks.\1.norm3.weight"]),
    ("transformer", _BLOCK + r"ff\.ff\.0\.proj\.(\w+)", [r"transformer_blocks.\1.ff.net.0.proj.\2"]),
    ("transformer", _BLOCK + r"ff\.ff\.2\.(\w+)", [r"transformer_blocks.\1.ff.net.2.\2"]),
    ("image_encoder", _VIDEO + r"visual_encoder_model\.(.+)", [r"\1"]),
    ("conditioner", _VIDEO + r"empty_visual_feat", [r"video_proj.empty_embedding"]),
    ("conditioner", _VIDEO + r"Temp_pos_embedding", [r"video_proj.temporal_embedding"]),
    ("conditioner", _VIDEO + r"proj\.(\w+)", [r"video_proj.proj.\1"]),
    ("conditioner", _TEMPORAL + r"0\.norm\.(\w+)", [r"video_proj.temporal_blocks.\1.norm1.\2"]),
    (
        "conditioner",
        _TEMPORAL + r"0\.fn\.to_qkv\.weight",
        [rf"video_proj.temporal_blocks.\1.attn1.to_{part}.weight" for part in "qkv"],
    ),
    ("conditioner", _TEMPORAL + r"0\.fn\.to_out\.0\.(\w+)", [r"video_proj.temporal_blocks.\1.attn1.to_out.0.\2"]),
    ("conditioner", _TEMPORAL + r"1\.norm\.(\w+)", [r"video_proj.temporal_blocks.\1.norm2.\2"]),
    ("conditioner", _TEMPORAL + r"1\.fn\.net\.0\.(\w+)", [r"video_proj.temporal_blocks.\1.ff.net.0.proj.\2"]),
    ("conditioner", _TEMPORAL + r"1\.fn\.net\.3\.(\w+)", [r"video_proj.temporal_blocks.\1.ff.net.2.\2"]),
    ("conditioner", _VIDEO + r"Temp_transformer\.norm\.(\w+)", [r"video_proj.norm_out.\1"]),
    ("conditioner", _AUDIO + r"empty_audio_feat", [r"audio_proj.empty_embedding"]),
    ("conditioner", _AUDIO + r"proj_out\.(\w+)", [r"audio_proj.proj.\1"]),
    ("vae", _VAE, [r"\1.layers.\2"]),
]

# Known to be unused, with the reason.
_UNUSED = [
    r"model\.model\.to_global_embed\.[02]\.weight",  # nothing is given globally
    r"model\.model\.transformer\.rotary_pos_emb\.inv_freq",  # a constant
    _BLOCK + r"(pre_norm|cross_attend_norm|ff_norm)\.beta",  # a buffer of zeros
    _AUDIO + r"pretransform\.model\..+",  # the VAE a second time
]

_COMPONENTS = ("transformer", "conditioner", "image_encoder", "vae")


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """
    Sort the tensors of a released AudioX checkpoint into components, under the names these use.

    Args:
        state_dict: tensors by their released names; meta tensors will do. They are viewed, not copied.

    Returns:
        A state dict for each of `transformer`, `conditioner`, `image_encoder` and `vae`, the last with weight norm.

    Raises:
        ValueError: naming the tensors that have no place, or that stand for a constant and differ from it.
    """
    components: dict[str, dict[str, torch.Tensor]] = {name: {} for name in _COMPONENTS}
    left_over = []
    for key, tensor in state_dict.items():
        for component, pattern, targets in _RULES:
            if match := re.fullmatch(pattern, key):
                for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
                    components[component][match.expand(target)] = part
                break
        else:
            if not any(re.fullmatch(pattern, key) for pattern in _UNUSED):
                left_over.append(key)
    if left_over:
        raise ValueError(f"not an AudioX checkpoint: no place for {_some(left_over)}")
    _check_unused(state_dict)
    if components["vae"]:
        components["vae"] = _rename_vae(components["vae"])
    return components


def released_name(component: str, name: str) -> str:
    """What a tensor of a component is called in a released checkpoint; `name` itself for those of the VAE."""
    for rule_component, pattern, targets in _RULES[:-1]:
        groups = re.findall(r"\((?!\?)([^()]*)\)", pattern)
        for target in targets if rule_component == component else ():
            template = re.sub(r"\\\\(\d)", lambda number: f"({groups[int(number[1]) - 1]})", re.escape(target))  # noqa: B023
            if match := re.fullmatch(template, name):
                values = iter(match.groups())
                return re.sub(r"\((?!\?)[^()]*\)", lambda _: next(values), pattern).replace("\\", "")  # noqa: B023
    return name


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
            if not torch.equal(tensor, state_dict[key.removeprefix("conditioner.conditioners.audio_prompt.")]):
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
    last_layer = {half: max(int(key.split(".")[2]) for key in state_dict if key.startswith(half)) for half in blocks}

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
