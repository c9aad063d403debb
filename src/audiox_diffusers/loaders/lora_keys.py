"""Keys of a LoRA file -> layers of a pipeline's components, for the formats of all common tools."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..models.model_audiox import some_names
from .checkpoint_mapping import split_rows
from .original_names import match, rules

# Wrappers and tools put these before the name of a module. Some of them name the component.
_PREFIXES = {
    "base_model.model.": None,  # peft
    "diffusion_model.": "transformer",  # ComfyUI
    "transformer.": "transformer",  # diffusers
    "conditioner.": "conditioner",
    "unet.": "transformer",
    "model.": None,
    "module.": None,  # DistributedDataParallel
    "_orig_mod.": None,  # torch.compile
}
# kohya's names have underscores instead of dots.
_UNDERSCORE_PREFIXES = {
    "lora_transformer_": "transformer",
    "lora_unet_": "transformer",
    "lora_conditioner_": "conditioner",
    "lycoris_": None,
}
# Where the released code may have been when it named its modules.
_RELEASED_PREFIXES = ("", "model.", "model.model.", "model.model.transformer.")
_ADAPTER = r"(?:\.[\w-]+)?"
_FACTORS = {
    "A": rf"\.lora_A{_ADAPTER}\.weight|[._]lora[._]down\.weight",
    "B": rf"\.lora_B{_ADAPTER}\.weight|[._]lora[._]up\.weight",
    "bias": rf"\.lora_B{_ADAPTER}\.bias",
    "magnitude": rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?|\.dora_scale",
    "alpha": r"\.alpha",
}


class LoraLayer(NamedTuple):
    """Factors of one layer, by the names in `_FACTORS`, and the keys that they come from."""

    factors: dict[str, torch.Tensor]
    keys: dict[str, str]

    @property
    def rank(self) -> int:
        return self.factors["A"].shape[0]

    @property
    def alpha(self) -> float | None:
        return self.factors["alpha"].item() if "alpha" in self.factors else None


class _Target(NamedTuple):
    component: str
    module: str
    # Number of modules that share the rows of a fused projection, which of them this is, and how rows are shared.
    count: int = 1
    index: int = 0
    interleaved: bool = False


def read_lora_layers(
    state_dict: Mapping[str, torch.Tensor], models: Mapping[str, torch.nn.Module]
) -> dict[str, dict[str, LoraLayer]]:
    """
    Sort the keys of a LoRA file by component and module.

    Modules may have the names of this package or of the released code, whose fused projections are split. Keys may have
    the prefixes and endings of diffusers, peft, ComfyUI or kohya.

    Args:
        state_dict: Tensors of the file.
        models: Components that can have adapters, by name.

    Returns:
        The layers of each component by module name. Components without layers are left out.

    Raises:
        ValueError: If a key matches no layer, or if a layer is incomplete, has other shapes than its module, or holds
            values that are not finite.
    """
    names = _ModuleNames(models)
    layers: dict[str, dict[str, LoraLayer]] = {}
    unused = []
    for key, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"Invalid LoRA file: `{key}` is not a tensor.")
        path, factor = _split_key(key)
        targets = names.find(path) if factor else []
        if not targets:
            unused.append(key)
        for target in targets:
            layer = layers.setdefault(target.component, {}).setdefault(target.module, LoraLayer({}, {}))
            if factor in layer.factors:
                raise ValueError(f"Invalid LoRA file: `{layer.keys[factor]}` and `{key}` are the same weight.")
            layer.factors[factor] = _part(factor, key, tensor, target)
            layer.keys[factor] = key
    if unused:
        raise ValueError(_unused_message(unused, models))
    if not layers:
        raise ValueError("Invalid LoRA file: it has no LoRA layers.")
    for component, modules in layers.items():
        for name, layer in modules.items():
            _check_layer(component, name, layer, names.modules[component][name])
    return layers


def base_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the linear layers and convolutions of a model by name, without the adapters around them."""
    modules, wrapped = {}, ()
    for name, module in model.named_modules():
        if not name or (wrapped and name.startswith(wrapped)):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped = f"{name}."
            module = module.get_base_layer()
        if _features(module, "in") and _features(module, "out"):
            modules[name] = module
    return modules


class _ModuleNames:
    """Finds the modules that a path of a LoRA file means."""

    def __init__(self, models: Mapping[str, torch.nn.Module]):
        self.modules = {component: base_modules(model) for component, model in models.items()}
        self._underscored = {
            component: {name.replace(".", "_"): name for name in modules}
            for component, modules in self.modules.items()
        }
        self._rules = rules(
            mmdit=type(models["transformer"]).__name__ == "AudioXMMTransformer2DModel",
            mel=models["conditioner"].config.audio_type == "mel_spec",
        )
        self._found: dict[str, list[_Target]] = {}

    def find(self, path: str) -> list[_Target]:
        if path not in self._found:
            self._found[path] = self._find(path)
        return self._found[path]

    def _find(self, path: str) -> list[_Target]:
        for name, component, underscored in _without_prefixes(path):
            for candidate in [component] if component else self.modules:
                own = self._underscored[candidate].get(name) if underscored else name
                if own in self.modules[candidate]:
                    return [_Target(candidate, own)]
            if targets := self._find_released(name, underscored):
                return targets
        return []

    def _find_released(self, name: str, underscored: bool) -> list[_Target]:
        for prefix in _RELEASED_PREFIXES:
            key = f"{prefix}{name}.weight"
            for rule in self._rules:
                released = rule.released
                if underscored:
                    key, released = key.replace(".", "_"), released.replace(".", "_")
                if (fields := match(released, key)) is None:
                    continue
                targets = [
                    _Target(
                        rule.component,
                        name.format(**fields).removesuffix(".weight"),
                        len(rule.names),
                        index,
                        rule.interleaved,
                    )
                    for index, name in enumerate(rule.names)
                    if name is not None
                ]
                if all(target.module in self.modules.get(target.component, ()) for target in targets):
                    return targets
        return []


def _split_key(key: str) -> tuple[str, str | None]:
    for factor, ending in _FACTORS.items():
        if match := re.fullmatch(rf"(.+?)(?:{ending})", key):
            return match[1], factor
    return key, None


def _without_prefixes(
    path: str, component: str | None = None, underscored: bool = False
) -> Iterator[tuple[str, str | None, bool]]:
    """Yield a path with ever fewer prefixes, the component that they name, and whether dots are underscores."""
    yield path, component, underscored
    if underscored:
        return
    for prefixes, below in ((_PREFIXES, False), (_UNDERSCORE_PREFIXES, True)):
        for prefix, named in prefixes.items():
            if path.startswith(prefix):
                yield from _without_prefixes(path.removeprefix(prefix), named or component, below)


def _part(factor: str, key: str, tensor: torch.Tensor, target: _Target) -> torch.Tensor:
    """Return the target's rows of a fused tensor, or the whole tensor if all targets share it."""
    if target.count == 1:
        return tensor
    if factor in ("A", "alpha"):
        return tensor.clone()
    if factor == "magnitude":
        tensor = tensor.flatten()
    if tensor.ndim == 0 or tensor.shape[0] % target.count:
        raise ValueError(
            f"Invalid LoRA file: the rows of `{key}`, shape {list(tensor.shape)}, must belong to {target.count}"
            " projections."
        )
    return list(split_rows(tensor, target.count, target.interleaved))[target.index].clone()


def _unused_message(unused: list[str], models: Mapping[str, torch.nn.Module]) -> str:
    conditioner = {f"conditioner.{name}" for name, _ in models["conditioner"].named_parameters()}
    if whole := conditioner.intersection(unused):
        return (
            f"The adapter holds whole tensors of the conditioner, {some_names(whole)}, as earlier versions"
            ' wrote it. See "Adapters of earlier versions" in docs/lora.md for how to convert it.'
        )
    kinds = " or ".join(type(model).__name__ for model in models.values())
    return f"Invalid LoRA file: {some_names(unused)} match no LoRA layer of {kinds}."


def _check_layer(component: str, name: str, layer: LoraLayer, module: torch.nn.Module) -> None:
    factors, keys = layer
    for factor, other in (("A", "B"), ("B", "A")):
        if factor not in factors:
            given = keys.get(other, next(iter(keys.values())))
            raise ValueError(f"Invalid LoRA file: `{given}` has no matching lora_{factor}.")
    for factor, tensor in factors.items():
        if not tensor.is_floating_point() and factor != "alpha":
            raise ValueError(f"Invalid LoRA file: `{keys[factor]}` must be floating point, got {tensor.dtype}.")
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"Invalid LoRA file: `{keys[factor]}` has NaN or infinite values.")
    if "alpha" in factors and (factors["alpha"].numel() != 1 or factors["alpha"].item() <= 0):
        raise ValueError(f"Invalid LoRA file: `{keys['alpha']}` must be one number above 0, got {factors['alpha']}.")

    kernel = tuple(getattr(module, "kernel_size", ()))
    inputs, outputs = _features(module, "in"), _features(module, "out")
    rank = factors["A"].shape[0] if factors["A"].ndim else 0
    if rank < 1:
        raise ValueError(f"Invalid LoRA file: the rank must be at least 1, got 0 for `{keys['A']}`.")
    shapes = {"A": (rank, inputs, *kernel), "B": (outputs, rank, *(1 for _ in kernel)), "bias": (outputs,)}
    if "magnitude" in factors and factors["magnitude"].numel() == outputs:
        shape = (1, outputs, *(1 for _ in kernel)) if kernel else (outputs,)
        factors["magnitude"] = factors["magnitude"].reshape(shape)
        shapes["magnitude"] = shape
    for factor, tensor in factors.items():
        shape = shapes.get(factor, (outputs,))
        if factor != "alpha" and tuple(tensor.shape) != shape:
            raise ValueError(
                f"The adapter is for another model, or damaged: `{keys[factor]}` must have the shape {list(shape)} for"
                f" `{component}.{name}`, got {list(tensor.shape)}."
            )


def check_siblings(component: str, modules: Mapping[str, object]) -> None:
    """
    Check that every block that an adapter changes has the same layers, and that no block is missing in between.

    Raises:
        ValueError: If a layer is missing beside its siblings.
    """
    kinds: dict[tuple[str, str], set[int]] = {}
    for name in modules:
        if match := re.match(r"(.*?)\.(\d+)\.(.+)", name):
            kinds.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for stack in {stack for stack, _ in kinds}:
        blocks = {block for (other, _), found in kinds.items() if other == stack for block in found}
        missing = [
            f"{component}.{stack}.{block}.{kind}"
            for (other, kind), found in kinds.items()
            if other == stack
            for block in range(min(blocks), max(blocks) + 1)
            if block not in found
        ]
        if missing:
            raise ValueError(f"Invalid LoRA file: it lacks {some_names(missing)}, but has the same layers elsewhere.")


def _features(module: torch.nn.Module, side: str) -> int | None:
    """Return the input or output size of a linear layer or a convolution, or `None` for other modules."""
    return getattr(module, f"{side}_features", None) or getattr(module, f"{side}_channels", None)
