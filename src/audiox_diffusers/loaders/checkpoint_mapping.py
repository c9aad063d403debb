"""Convert the state dict of a released AudioX checkpoint to those of the components, and back."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch

from .original_names import (
    AUDIO,
    CONTEXT_EMBED,
    GLOBAL_EMBED,
    INV_FREQ,
    MMDIT_QUERY,
    SYNCHFORMER,
    SYNCHFORMER_RULES,
    VAE,
    Rule,
    match,
    rules,
    unused,
    vae_layers,
)

StateDict = dict[str, torch.Tensor]

COMPONENTS = ("transformer", "conditioner", "image_encoder", "vae")
# Prefixes that training code puts before the released names.
PREFIXES = ("", "module.", "model.", "student.", "student.model.")
# A tensor of every release, by which its prefix is found.
_MARKER = "model.model.timestep_features.weight"
_ROOTS = ("model.model.", "conditioner.conditioners.", "maf_block.", VAE)
_VAE_PARAMETERS = ("alpha", "beta", "bias", "weight_g", "weight_v")


def is_mmdit(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether a released checkpoint holds the multi-modal transformer."""
    return "model.model.transformer.proj_mm_tokens.weight" in state_dict


def some(names: Iterable[str], limit: int = 5) -> str:
    """List the first names and count the others."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def remove_prefix(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """
    Remove a training prefix such as `module.` or `student.model.` from the released names.

    Raises:
        ValueError: The names are not those of AudioX.
    """
    for prefix in PREFIXES:
        if prefix + _MARKER in state_dict:
            return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    if any(key.startswith(_ROOTS) for key in state_dict):
        return dict(state_dict)
    raise ValueError(
        f"not an AudioX checkpoint: expected {_MARKER}, alone or after {', '.join(PREFIXES[1:])};"
        f" found {some(state_dict)}"
    )


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, StateDict]:
    """
    Sort the tensors of a released AudioX checkpoint into components and rename them.

    Args:
        state_dict: Tensors by their released names, on any device including meta. They are not copied, except for
            tensors whose rows are interleaved.

    Returns:
        A state dict each for `transformer`, `conditioner`, `image_encoder` and `vae`. The VAE keeps its weight norm;
        its state dict is empty if the checkpoint does not contain it.

    Raises:
        ValueError: Tensors are unknown, or should be constant but are not. The message names them.
    """
    state_dict = remove_prefix(state_dict)
    mmdit, mel = is_mmdit(state_dict), AUDIO + "proj_features.weight" in state_dict
    ignored = unused(mmdit)
    converted, left_over = _convert(
        {key: tensor for key, tensor in state_dict.items() if not key.startswith((VAE, AUDIO + VAE))},
        rules(mmdit, mel),
    )
    left_over = [key for key in left_over if not any(match(template, key) is not None for template in ignored)]
    converted["vae"], unknown = _rename_vae(vae_of(state_dict))
    left_over += [VAE + key for key in unknown]
    if left_over:
        raise ValueError(f"not an AudioX checkpoint: found {some(left_over)}, which no release of this kind has")
    _check_constants(state_dict)
    return {name: converted.get(name, {}) for name in COMPONENTS}


def vae_of(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Return the VAE in a released checkpoint, from `encoder.` or `decoder.` on. Empty if it does not contain it."""
    return _with_prefix(state_dict, VAE) or _with_prefix(state_dict, AUDIO + VAE)


def find_vae(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """
    Return the VAE in a file of its own, from `encoder.` or `decoder.` on. Empty if it does not contain the VAE.

    Raises:
        ValueError: The file contains several VAEs.
    """
    vaes: dict[str, StateDict] = {}
    for key, tensor in state_dict.items():
        if found := re.fullmatch(r"(.*\.)?((?:encoder|decoder)\.layers\..+)", key):
            vaes.setdefault(found[1] or "", {})[found[2]] = tensor
    if len(vaes) > 1:
        raise ValueError(f"the file holds several VAEs, under the prefixes {', '.join(sorted(vaes))}")
    return next(iter(vaes.values()), {})


def convert_vae_state_dict(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """
    Rename the tensors of a file with the VAE, under any prefix. Empty if it does not contain the VAE.

    Raises:
        ValueError: The file contains several VAEs, or unknown layers.
    """
    vae, unknown = _rename_vae(find_vae(state_dict))
    if unknown:
        raise ValueError(f"not the VAE of AudioX: found {some(unknown)}")
    return vae


def convert_synchformer_state_dict(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """
    Convert Synchformer's visual tower, `vfeat_extractor.*`, to the names of `SynchformerVisionModel`.

    The other parts of Synchformer are ignored, and so is `patch_embed`, which nothing uses.

    Raises:
        ValueError: Tensors of the tower are unknown or missing. The message names them.
    """
    prefix = next((p for p in PREFIXES if any(key.startswith(p + SYNCHFORMER) for key in state_dict)), None)
    if prefix is None:
        raise ValueError(f"not a Synchformer checkpoint: expected {SYNCHFORMER}*, found {some(state_dict)}")
    tower = _with_prefix(state_dict, prefix + SYNCHFORMER)
    tower = {SYNCHFORMER + key: tensor for key, tensor in tower.items() if not key.startswith("patch_embed.")}
    positions = {SYNCHFORMER + name: tower.pop(SYNCHFORMER + name, None) for name in ("pos_embed", "temp_embed")}
    missing = [name for name, tensor in positions.items() if tensor is None]
    missing += {SYNCHFORMER + "patch_embed_3d.proj.weight"} - tower.keys()
    if missing:
        raise ValueError(f"not a Synchformer checkpoint: {some(missing)} missing")
    converted, left_over = _convert(tower, SYNCHFORMER_RULES)
    if left_over:
        raise ValueError(f"not a Synchformer checkpoint: found {some(left_over)}")
    space, time = positions.values()
    return converted["sync_encoder"] | {
        "class_position_embed": space[:, :1],
        "space_position_embed": space[:, None, 1:],
        "time_position_embed": time[:, :, None],
    }


def fold_weight_norm(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Replace each pair `weight_g` (g), `weight_v` (v) by `weight = g * v / |v|`, norm over all but the first axis."""
    folded = {}
    for key, tensor in state_dict.items():
        if key.endswith("weight_v"):
            if key[:-1] + "g" not in state_dict:
                raise ValueError(f"not an AudioX checkpoint: {key[:-1]}g of the VAE is missing")
            gain = state_dict[key[:-1] + "g"].float()
            norm = torch.linalg.vector_norm(tensor.float(), dim=(1, 2), keepdim=True)
            folded[key.removesuffix("_v")] = (tensor.float() * (gain / norm)).to(tensor.dtype)
        elif not key.endswith("weight_g"):
            folded[key] = tensor
    return folded


def restore_state_dict(
    components: Mapping[str, Mapping[str, torch.Tensor]],
    rotary_dim: int | None = None,
    like: Mapping[str, torch.Tensor] | None = None,
) -> StateDict:
    """
    Convert the state dicts of the components back to a released checkpoint, the inverse of [`convert_state_dict`].

    Args:
        components: A state dict each for `transformer`, `conditioner`, `image_encoder` and `vae`, the last without
            weight norm.
        rotary_dim: Number of dimensions of a head that RoPE rotates in an `AudioXTransformer2DModel`.
        like: Tensors by their released names. They give the tensors that nothing uses, which are zeros otherwise; the
            weight norm of VAE weights that are equal; and the dtypes.

    Returns:
        Tensors by their released names. Folding their weight norm gives exactly the weights of the VAE.

    Raises:
        ValueError: A component has an unknown tensor, or `like` is of another release.
    """
    transformer, conditioner = components["transformer"], components["conditioner"]
    mmdit = "context_to_positions.weight" in transformer
    mel = not conditioner.keys() & {"audio_proj.empty_embedding", "audio_proj.proj_time.weight"}
    like = {} if like is None else remove_prefix(like)
    restored = _restore(components, rules(mmdit, mel), like)
    restored |= {VAE + key: tensor for key, tensor in _restore_vae(components["vae"], _with_prefix(like, VAE)).items()}
    if not mel:
        restored |= {AUDIO + key: tensor for key, tensor in restored.items() if key.startswith(VAE)}
    restored |= _unused_tensors(transformer, conditioner, rotary_dim, mmdit)
    if like:
        # A release may keep the VAE in a file of its own.
        copies = tuple(prefix for prefix in (VAE, AUDIO + VAE) if not any(key.startswith(prefix) for key in like))
        wrong = [key for key in restored.keys() ^ like.keys() if not key.startswith(copies)]
        wrong += [key for key in restored.keys() & like.keys() if restored[key].shape != like[key].shape]
        if wrong:
            raise ValueError(f"`like` is another release: it differs in {some(wrong)}")
        constant = unused(mmdit)
        for key in restored.keys() & like.keys():
            if any(match(template, key) is not None for template in constant):
                restored[key] = like[key]
            restored[key] = restored[key].to(like[key].dtype)
    return restored


def restore_synchformer_state_dict(
    state_dict: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor] | None = None
) -> StateDict:
    """
    Convert `SynchformerVisionModel` back to a released file, the inverse of [`convert_synchformer_state_dict`].

    `like` gives the parts of a released file that nothing uses. Without it they are zeros, or left out if they do not
    belong to the visual tower.
    """
    state_dict = dict(state_dict)
    space = [state_dict.pop("class_position_embed"), state_dict.pop("space_position_embed").squeeze(1)]
    time = state_dict.pop("time_position_embed").squeeze(2)
    restored = _restore({"sync_encoder": state_dict}, SYNCHFORMER_RULES, {})
    patches = restored[SYNCHFORMER + "patch_embed_3d.proj.weight"]
    restored |= {
        SYNCHFORMER + "pos_embed": torch.cat(space, dim=1),
        SYNCHFORMER + "temp_embed": time,
        SYNCHFORMER + "patch_embed.proj.weight": torch.zeros_like(patches[:, :, 0]),
        SYNCHFORMER + "patch_embed.proj.bias": torch.zeros_like(patches[:, 0, 0, 0, 0]),
    }
    for key, tensor in (like or {}).items():
        unused_part = not key.startswith(SYNCHFORMER) or key.startswith(SYNCHFORMER + "patch_embed.")
        restored[key] = tensor if unused_part else restored[key].to(tensor.dtype)
    return restored


def _with_prefix(state_dict: Mapping[str, torch.Tensor], prefix: str) -> StateDict:
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def _convert(state_dict: Mapping[str, torch.Tensor], table: Sequence[Rule]) -> tuple[dict[str, StateDict], list[str]]:
    """Return the components, and the names that no rule knows."""
    components: dict[str, StateDict] = {}
    left_over = []
    for key, tensor in state_dict.items():
        for rule in table:
            if (fields := match(rule.released, key)) is not None:
                parts = zip(rule.names, split_rows(tensor, len(rule.names), rule.interleaved), strict=True)
                named = {name.format(**fields): part for name, part in parts if name is not None}
                components.setdefault(rule.component, {}).update(named)
                break
        else:
            left_over.append(key)
    return components, left_over


def split_rows(tensor: torch.Tensor, count: int, interleaved: bool) -> Sequence[torch.Tensor]:
    """Split the rows of a tensor into `count` equal parts."""
    if count == 1:
        return [tensor]
    return [tensor[i::count].contiguous() for i in range(count)] if interleaved else tensor.chunk(count)


def _restore(
    components: Mapping[str, Mapping[str, torch.Tensor]], table: Sequence[Rule], like: Mapping[str, torch.Tensor]
) -> StateDict:
    restored, left_over = {}, {(component, name) for component in components for name in components[component]}
    left_over -= {(component, name) for component, name in left_over if component == "vae"}
    for rule in table:
        tensors = components[rule.component]
        for first in tensors:
            if (fields := match(rule.names[0], first)) is None:
                continue
            key, names = rule.released.format(**fields), [name and name.format(**fields) for name in rule.names]
            left_over -= {(rule.component, name) for name in names}
            parts = [tensors.get(name) for name in names]
            if None in rule.names:
                filler = (
                    split_rows(like[key], len(rule.names), rule.interleaved)[names.index(None)]
                    if key in like
                    else torch.zeros_like(parts[0])
                )
                parts = [filler if part is None else part for part in parts]
            restored[key] = _join(parts, rule)
    if left_over:
        raise ValueError(f"unknown tensors: {some(f'{component}.{name}' for component, name in left_over)}")
    return restored


def _join(parts: list[torch.Tensor], rule: Rule) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts, dim=1).flatten(0, 1) if rule.interleaved else torch.cat(parts)


def _rename_vae(state_dict: Mapping[str, torch.Tensor]) -> tuple[StateDict, list[str]]:
    """Return the VAE by its names in diffusers, snake's parameters as `[1, C, 1]`, and the names that are unknown."""
    numbers = [int(key.split(".")[2]) for key in state_dict if ".layers." in key and key.split(".")[2].isdigit()]
    layers = vae_layers(max(numbers, default=2) - 2)
    renamed, unknown = {}, []
    for key, tensor in state_dict.items():
        layer, _, parameter = key.rpartition(".")
        if layer in layers and parameter in _VAE_PARAMETERS:
            snake = parameter in ("alpha", "beta")
            renamed[f"{layers[layer]}.{parameter}"] = tensor[None, :, None] if snake else tensor
        else:
            unknown.append(key)
    return renamed, unknown


def _restore_vae(state_dict: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> StateDict:
    """
    Return the VAE under its released names, with weight norm. Norms of `like` are reused where they give the same
    weight.
    """
    num_blocks = 1 + max(int(key.split(".")[2]) for key in state_dict if key.startswith("encoder.block."))
    layers = {name: released for released, name in vae_layers(num_blocks).items()}
    restored = {}
    for key, tensor in state_dict.items():
        layer, _, parameter = key.rpartition(".")
        if layer not in layers:
            raise ValueError(f"unknown tensors: vae.{key}")
        released = f"{layers[layer]}.{parameter}"
        if parameter != "weight":
            restored[released] = tensor.flatten() if parameter in ("alpha", "beta") else tensor
            continue
        pair = {name: like[name] for name in (f"{released}_g", f"{released}_v") if name in like}
        if len(pair) < 2 or not torch.equal(fold_weight_norm(pair)[released], tensor):
            norm = torch.linalg.vector_norm(tensor.float(), dim=(1, 2), keepdim=True)
            # The direction of a weight of zeros is arbitrary, but must not be zero.
            pair = {f"{released}_g": norm, f"{released}_v": torch.where(norm == 0, 1.0, tensor.float())}
        restored |= pair
    return restored


def _unused_tensors(
    transformer: Mapping[str, torch.Tensor],
    conditioner: Mapping[str, torch.Tensor],
    rotary_dim: int | None,
    mmdit: bool,
) -> StateDict:
    """Return the unused tensors of a released transformer."""
    like = transformer["proj_in.weight"]
    width = like.shape[0]
    num_layers = 1 + max(int(name.split(".")[1]) for name in transformer if name.startswith("transformer_blocks."))
    context_width = transformer["context_embed.weight" if mmdit else "context_embed.linear_1.weight"].shape[1]
    # AudioX has a global condition as wide as the transformer, the releases with a fusion one as wide as the context.
    global_width = context_width if "fusion.experts" in conditioner else width
    shapes = {GLOBAL_EMBED[0]: (width, global_width), GLOBAL_EMBED[1]: (width, width)}
    if mmdit:
        shapes |= {name: (context_width, context_width) for name in CONTEXT_EMBED}
        per_layer = {MMDIT_QUERY: (width, width)}
    else:
        per_layer = {name: (width,) for name in unused(mmdit) if "{i}" in name}  # buffers of zeros
    shapes |= {name.format(i=i): shape for i in range(num_layers) for name, shape in per_layer.items()}
    tensors = {name: like.new_zeros(shape) for name, shape in shapes.items()}
    return tensors if mmdit else tensors | {INV_FREQ: rotary_frequencies(rotary_dim)}


def rotary_frequencies(rotary_dim: int) -> torch.Tensor:
    """Return the constant `inv_freq` of a released DiT, shape `[rotary_dim / 2]`."""
    return 1.0 / (10000 ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim))


def _check_constants(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Check the tensors that are left out. Of the second copy of the VAE only the vectors are compared."""
    wrong = []
    for key, tensor in state_dict.items():
        if tensor.is_meta:
            continue
        if key.endswith(".beta") and key.startswith("model."):
            if tensor.any():
                wrong.append(key)
        elif key == INV_FREQ:
            if not torch.allclose(tensor.float(), rotary_frequencies(2 * len(tensor)), rtol=1e-2):
                wrong.append(key)
        elif key.startswith(AUDIO + VAE) and tensor.squeeze().ndim == 1:
            first = state_dict.get(key.removeprefix(AUDIO))
            if first is not None and not torch.equal(tensor, first):
                wrong.append(key)
    if wrong:
        raise ValueError(f"not an AudioX checkpoint: {some(wrong)} should be constant, or a copy of the VAE")
