"""LoRA files of other tools and earlier versions, and files with faults."""

import copy
import json

import pytest
import torch
from helpers import assert_equal, seeded
from lora_pipelines import (
    FILE,
    adapter_layers,
    add_adapter,
    generate,
    generate_from_audio,
    save_adapter,
    weights_of,
)
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audiox_diffusers.loaders import convert_state_dict


@pytest.fixture
def unloaded(lora_pipe):
    """A pipeline with an adapter of alpha 4 and rank 4: its output, its layers, and the pipeline without it."""
    add_adapter(lora_pipe, lora_alpha=4)
    expected, layers = generate(lora_pipe), adapter_layers(lora_pipe, prefix="")
    lora_pipe.unload_lora_weights()
    return expected, layers, lora_pipe


def kohya(key: str, prefix: str = "lora_transformer_") -> str:
    module, factor, _ = key.rsplit(".", 2)
    return f"{prefix}{module.replace('.', '_')}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[factor] }.weight"


# Formats


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"transformer.{key}",
        lambda key: key,
        lambda key: f"base_model.model.{key}",
        lambda key: f"base_model.model.transformer.{key}",
        lambda key: f"base_model.model.{key}".replace(".weight", ".default.weight"),
        lambda key: f"diffusion_model.{key}",
        lambda key: f"diffusion_model.{key}".replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        lambda key: f"transformer.{key}".replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        lambda key: f"unet.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: kohya(key),
        lambda key: kohya(key, "lora_unet_"),
        lambda key: kohya(key, "lycoris_"),
        lambda key: kohya(key) if "to_q" in key else f"diffusion_model.{key}",
    ],
    ids=[
        "diffusers",
        "no prefix",
        "peft",
        "peft of diffusers",
        "peft with adapter name",
        "comfyui",
        "comfyui down and up",
        "old diffusers",
        "unet",
        "wrappers",
        "kohya",
        "kohya unet",
        "lycoris",
        "mixed",
    ],
)
def test_keys_of_other_tools(unloaded, rename):
    expected, layers, pipe = unloaded
    pipe.load_lora_weights({rename(key): tensor for key, tensor in layers.items()})
    assert_equal(generate(pipe), expected)


def test_alphas(unloaded):
    """`alpha` sets the scale of its own layer, and a layer without one has the scale 1."""
    _, layers, pipe = unloaded
    alphas = {"proj_in": 2.0, "transformer_blocks.0.attn1.to_q": 10.0}
    state_dict = {kohya(key): tensor for key, tensor in layers.items()}
    state_dict |= {
        f"lora_transformer_{module.replace('.', '_')}.alpha": torch.tensor(alpha) for module, alpha in alphas.items()
    }
    pipe.load_lora_weights(state_dict, adapter_name="mine")
    scales = {
        name: layer.scaling["mine"] for name, layer in pipe.transformer.named_modules() if hasattr(layer, "scaling")
    }
    assert {name: scale for name, scale in scales.items() if scale != 1} == {
        module: alpha / 4 for module, alpha in alphas.items()
    }


def test_a_common_alpha(unloaded):
    _, layers, pipe = unloaded
    modules = {key.rsplit(".", 2)[0] for key in layers}
    alphas = {f"diffusion_model.{module}.alpha": torch.tensor([2.0]) for module in modules}
    pipe.load_lora_weights({f"diffusion_model.{key}": tensor for key, tensor in layers.items()} | alphas)
    (config,) = pipe.transformer.peft_config.values()
    assert (config.r, config.lora_alpha) == (4, 2)
    assert config.alpha_pattern == config.rank_pattern == {}


def test_ranks_differ_by_layer(unloaded):
    expected, layers, pipe = unloaded
    for key in ("proj_in.lora_A.weight", "proj_in.lora_B.weight"):
        layers[key] = torch.cat((layers[key], torch.zeros_like(layers[key])), dim=0 if "lora_A" in key else 1)
    pipe.load_lora_weights(layers, adapter_name="mine")
    assert pipe.transformer.proj_in.r["mine"] == 8
    torch.testing.assert_close(generate(pipe), expected)


@pytest.mark.parametrize("config", [{"lora_alpha": 12}, {"lora_alpha": 2, "use_rslora": True}, {"use_dora": True}])
def test_folder_of_peft(lora_pipe, tmp_path, config):
    """`PeftModel.save_pretrained` keeps alpha and the kind of adapter in `adapter_config.json`."""
    pipe = copy.deepcopy(lora_pipe)
    config = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False, **config)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = get_peft_model(pipe.transformer, config)
    expected = generate(pipe)
    model.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        lora_pipe.load_lora_weights(path)
        assert_equal(generate(lora_pipe), expected)
        lora_pipe.unload_lora_weights()


def test_file_of_peft_without_its_configuration(unloaded, tmp_path, warnings_of):
    _, layers, pipe = unloaded
    save_file({f"base_model.model.{key}": tensor for key, tensor in layers.items()}, tmp_path / "one.safetensors")
    pipe.load_lora_weights(tmp_path)
    assert "no `adapter_config.json`" in warnings_of()


def test_dora_of_kohya(lora_pipe):
    add_adapter(lora_pipe, lora_alpha=4, use_dora=True)
    expected = generate(lora_pipe)
    state_dict = adapter_layers(lora_pipe, prefix="diffusion_model.")
    lora_pipe.unload_lora_weights()
    renamed = {
        key.replace("lora_magnitude_vector", "dora_scale"): tensor[:, None] if "magnitude" in key else tensor
        for key, tensor in state_dict.items()
    }
    lora_pipe.load_lora_weights(renamed)
    assert_equal(generate(lora_pipe), expected)


# Names of the released code

RELEASED = {
    "dit": {
        "model.model.transformer.layers.{}.self_attn.to_qkv": (64, 192),
        "model.model.transformer.layers.{}.cross_attn.to_kv": (16, 64),
        "model.model.transformer.layers.{}.self_attn.to_out": (64, 64),
        "model.model.transformer.layers.{}.ff.ff.0.proj": (64, 512),
    },
    "mmdit": {
        "model.model.transformer.layers.{}.attn.qkv": (64, 192),
        "model.model.transformer.layers.{}.linear1": (64, 64, 3),
        "model.model.transformer.layers.{}.adaLN_modulation.1": (64, 384),
    },
}


def released_adapter(kind: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random factors `A` and `B` of layers with their released names."""
    generator, layers = seeded(3), {}
    for name, (inputs, outputs, *kernel_size) in RELEASED[kind].items():
        for block in range(2):
            a = torch.randn(3, inputs, *kernel_size, generator=generator) / 8
            b = torch.randn(outputs, 3, *(1 for _ in kernel_size), generator=generator) / 8
            layers[name.format(block)] = (a, b)
    return layers


@pytest.mark.parametrize("kind", RELEASED)
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"base_model.model.{name}.",
        lambda name: f"diffusion_model.{name.removeprefix('model.model.')}.",
        lambda name: name.removeprefix("model.model.transformer.") + ".",
        lambda name: f"lora_unet_{name.removeprefix('model.model.').replace('.', '_')}.",
    ],
    ids=["peft", "comfyui", "no prefix", "kohya"],
)
def test_released_names(lora_pipelines, kind, rename):
    """A converted adapter gives the weights that converting the released weights plus `B A` gives."""
    pipe, layers = copy.deepcopy(lora_pipelines[kind]), released_adapter(kind)
    deltas = {}
    for name, (a, b) in layers.items():
        deltas[f"{name}.weight"] = torch.einsum("or...,ri...->oi...", b, a)
    if kind == "mmdit":
        # Marks the checkpoint as one with the multimodal transformer.
        deltas["model.model.transformer.proj_mm_tokens.weight"] = torch.zeros(64, 64)
    expected = {
        key: pipe.transformer.state_dict()[key] + delta
        for key, delta in convert_state_dict(deltas)["transformer"].items()
    }
    state_dict = {}
    for name, (a, b) in layers.items():
        state_dict |= {f"{rename(name)}lora_down.weight": a, f"{rename(name)}lora_up.weight": b}
    pipe.load_lora_weights(state_dict, adapter_name="released")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    actual = pipe.transformer.state_dict()
    torch.testing.assert_close({key: actual[key] for key in expected}, expected)
    assert len(expected) > len(layers)


def test_released_names_are_saved_with_own_names(lora_pipelines, tmp_path):
    pipe = copy.deepcopy(lora_pipelines["dit"])
    state_dict = {}
    for name, (a, b) in released_adapter("dit").items():
        state_dict |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.alpha": torch.tensor(6.0)}
    pipe.load_lora_weights(state_dict, adapter_name="released")
    expected = generate(pipe)
    pipe.save_lora_adapter(tmp_path, "released")
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)
    assert_equal(generate(pipe), expected)
    assert next(iter(pipe.transformer.peft_config.values())).lora_alpha == 6


# Adapters of earlier versions


def test_whole_tensors_of_the_conditioner(lora_pipe, tmp_path):
    """Whole tensors are refused. The conversion in docs/lora.md gives what earlier versions gave."""
    own = dict(lora_pipe.conditioner.named_parameters())
    tensors = {
        name: 0.3 * torch.randn(own[name].shape, generator=seeded(5))
        for name in ("video_proj.empty_embedding", "audio_proj.proj.weight")
    }
    pipe = copy.deepcopy(lora_pipe)
    add_adapter(pipe)
    save_adapter(pipe, tmp_path)
    pipe.conditioner.load_state_dict(tensors, strict=False)
    expected = generate_from_audio(pipe)
    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = file.metadata()
    layers = load_file(tmp_path / FILE)
    save_file(layers | {f"conditioner.{name}": tensor for name, tensor in tensors.items()}, tmp_path / FILE, metadata)

    message = "whole tensors of the conditioner, `conditioner.audio_proj.proj.weight`, .* docs/lora.md"
    with pytest.raises(ValueError, match=message):
        lora_pipe.load_lora_weights(tmp_path)
    assert lora_pipe.get_list_adapters() == {}
    save_file(layers, tmp_path / "converted.safetensors", metadata)
    lora_pipe.conditioner.load_state_dict(tensors, strict=False)
    lora_pipe.load_lora_weights(tmp_path / "converted.safetensors")
    assert_equal(generate_from_audio(lora_pipe), expected)


# Faults


def without(*endings: str):
    return lambda layers: {key: tensor for key, tensor in layers.items() if not key.endswith(endings)}


def with_tensor(key: str, change):
    return lambda layers: {**layers, key: change(layers.get(key))}


Q = "transformer_blocks.1.attn1.to_q"
FAULTS = {
    "unknown key": (
        with_tensor("extra.lora_A.weight", lambda _: torch.zeros(4, 64)),
        "`extra.lora_A.weight` match no",
    ),
    "layer of another model": (
        with_tensor("transformer_blocks.7.attn1.to_q.lora_A.weight", lambda _: torch.zeros(4, 64)),
        "`transformer_blocks.7.attn1.to_q.lora_A.weight` match no LoRA layer of AudioX",
    ),
    "key of another component": (
        with_tensor("text_encoder.layer.q.lora_A.weight", lambda _: torch.zeros(4, 64)),
        "`text_encoder.layer.q.lora_A.weight` match no",
    ),
    "plain weight": (with_tensor("proj_in.weight", lambda _: torch.zeros(64, 128)), "`proj_in.weight` match no"),
    "bias of a norm": (with_tensor("norm.bias", lambda _: torch.zeros(64)), "`norm.bias` match no"),
    "LoKr": (with_tensor(f"{Q}.lokr_w1", lambda _: torch.zeros(8, 8)), "lokr_w1` match no"),
    "LoHa": (with_tensor(f"{Q}.hada_w1_a", lambda _: torch.zeros(8, 8)), "hada_w1_a` match no"),
    "middle factor": (with_tensor(f"{Q}.lora_mid.weight", lambda _: torch.zeros(4, 4)), "lora_mid.weight` match no"),
    "many unknown keys": (
        lambda layers: layers | {f"extra.{i}.lora_A.weight": torch.zeros(4, 64) for i in range(9)},
        "`extra.2.lora_A.weight` and 6 more match no",
    ),
    "all A without B": (without("lora_B.weight"), "lora_A.weight` has no matching lora_B"),
    "one A without B": (without(f"{Q}.lora_B.weight"), f"`{Q}.lora_A.weight` has no matching lora_B"),
    "one B without A": (without(f"{Q}.lora_A.weight"), f"`{Q}.lora_B.weight` has no matching lora_A"),
    "alpha without layer": (
        with_tensor("proj_out.alpha", lambda _: torch.tensor(1.0)),
        "`proj_out.alpha` has no matching lora_A",
    ),
    "missing layer": (
        without(f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),
        f"it lacks `transformer.{Q}`, but has the same layers elsewhere",
    ),
    "ranks of A and B differ": (
        with_tensor(f"{Q}.lora_B.weight", lambda tensor: tensor[:, :3]),
        rf"`{Q}.lora_B.weight` must have the shape \[64, 4\]",
    ),
    "input size": (
        with_tensor(f"{Q}.lora_A.weight", lambda tensor: tensor[:, :60]),
        rf"`{Q}.lora_A.weight` must have the shape \[4, 64\] for `transformer.{Q}`, got \[4, 60\]",
    ),
    "output size": (
        with_tensor(f"{Q}.lora_B.weight", lambda tensor: tensor[:32]),
        rf"`{Q}.lora_B.weight` must have the shape \[64, 4\] for `transformer.{Q}`, got \[32, 4\]",
    ),
    "dimensions": (
        with_tensor(f"{Q}.lora_A.weight", lambda tensor: tensor[..., None]),
        rf"must have the shape \[4, 64\] for `transformer.{Q}`, got \[4, 64, 1\]",
    ),
    "rank 0": (
        with_tensor(f"{Q}.lora_A.weight", lambda tensor: tensor[:0]),
        f"rank must be at least 1, got 0 for `{Q}.lora_A.weight`",
    ),
    "scalar": (with_tensor(f"{Q}.lora_A.weight", lambda _: torch.tensor(1.0)), "rank must be at least 1, got 0"),
    "NaN": (
        with_tensor(f"{Q}.lora_A.weight", lambda tensor: tensor * float("nan")),
        f"`{Q}.lora_A.weight` has NaN or infinite values",
    ),
    "infinity": (
        with_tensor(f"{Q}.lora_B.weight", lambda tensor: tensor + float("-inf")),
        f"`{Q}.lora_B.weight` has NaN or infinite values",
    ),
    "NaN in alpha": (with_tensor(f"{Q}.alpha", lambda _: torch.tensor(float("nan"))), f"`{Q}.alpha` has NaN"),
    "alpha 0": (with_tensor(f"{Q}.alpha", lambda _: torch.tensor(0.0)), f"`{Q}.alpha` must be one number above 0"),
    "two alphas": (with_tensor(f"{Q}.alpha", lambda _: torch.ones(2)), f"`{Q}.alpha` must be one number above 0"),
    "integers": (
        with_tensor(f"{Q}.lora_A.weight", lambda tensor: tensor.to(torch.int8)),
        f"`{Q}.lora_A.weight` must be floating point, got torch.int8",
    ),
    "not a tensor": (with_tensor("config", lambda _: {"r": 4}), "`config` is not a tensor"),
    "the same weight twice": (
        with_tensor(f"diffusion_model.{Q}.lora_A.weight", lambda _: torch.zeros(4, 64)),
        f"`{Q}.lora_A.weight` and `diffusion_model.{Q}.lora_A.weight` are the same weight",
    ),
    "DoRA in one layer": (
        with_tensor(f"{Q}.lora_magnitude_vector", lambda _: torch.ones(64)),
        "lacks magnitude, unlike other layers",
    ),
    "bias in one layer": (
        with_tensor(f"{Q}.lora_B.bias", lambda _: torch.ones(64)),
        "lacks bias, unlike other layers",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loaded_before", [False, True], ids=["", "beside another"])
def test_faults(unloaded, fault, loaded_before):
    _, layers, pipe = unloaded
    if loaded_before:
        pipe.load_lora_weights(layers, adapter_name="good")
    change, message = FAULTS[fault]
    before, adapters = weights_of(pipe.transformer, pipe.conditioner), pipe.get_list_adapters()
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(change(layers), adapter_name="bad")
    assert pipe.get_list_adapters() == adapters
    assert_equal(weights_of(pipe.transformer, pipe.conditioner), before)


@pytest.mark.parametrize("missing", [[0, 1], [2], [1, 3]], ids=str)
def test_missing_blocks(lora_pipelines, missing):
    """An adapter for consecutive blocks is complete. A gap between them is not."""
    pipe = copy.deepcopy(lora_pipelines["dit"])
    pipe.transformer = type(pipe.transformer).from_config(pipe.transformer.config, num_layers=5).eval()
    add_adapter(pipe)
    layers = adapter_layers(pipe)
    pipe.unload_lora_weights()
    layers = {key: value for key, value in layers.items() if not any(f"blocks.{i}." in key for i in missing)}
    if missing == [0, 1]:
        pipe.load_lora_weights(layers)
        assert pipe.get_list_adapters() == {"transformer": ["default_0"]}
    else:
        with pytest.raises(ValueError, match=f"it lacks `transformer.transformer_blocks.{missing[0]}.attn1.to_k`"):
            pipe.load_lora_weights(layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.r": 8}, "has rank 4, and the adapter's configuration has 8"),
        ({"transformer.r": 0}, "rank must be at least 1, got 0"),
        ({"transformer.rank_pattern": {"to_q": 2}}, "has rank 4, and the adapter's configuration has 2"),
        (
            {"transformer.target_modules": ["to_q", "to_k", "to_v", "proj_in", "proj_out"]},
            "it lacks `transformer.proj_out",
        ),
        ({"transformer.use_dora": True}, "lacks magnitude"),
        ({"transformer.unknown_setting": 1}, "configuration of the transformer is invalid"),
    ],
)
def test_metadata_that_does_not_match_the_layers(lora_pipe, saved, change, message):
    with safe_open(saved / "both" / FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    layers = load_file(saved / "both" / FILE)
    save_file(layers, saved / FILE, {"lora_adapter_metadata": json.dumps(metadata | change)})
    with pytest.raises(ValueError, match=message):
        lora_pipe.load_lora_weights(saved / FILE)
    assert lora_pipe.get_list_adapters() == {}


def test_a_missing_layer_of_the_conditioner(lora_pipe, saved):
    layers = load_file(saved / "both" / FILE)
    with safe_open(saved / "both" / FILE, "pt") as file:
        metadata = file.metadata()
    layers = {key: tensor for key, tensor in layers.items() if "audio_proj" not in key}
    save_file(layers, saved / FILE, metadata)
    with pytest.raises(ValueError, match="it lacks `conditioner.audio_proj.proj`, which its configuration targets"):
        lora_pipe.load_lora_weights(saved / FILE)
    assert lora_pipe.get_list_adapters() == {}


@pytest.mark.parametrize("name", ["self_attn.to_qkv", "cross_attn.to_kv"])
def test_half_of_a_fused_projection(lora_pipelines, name):
    pipe = copy.deepcopy(lora_pipelines["dit"])
    key = f"model.model.transformer.layers.0.{name}"
    rows = 64 if name.endswith("qkv") else 32
    state_dict = {f"{key}.lora_A.weight": torch.ones(4, 16), f"{key}.lora_B.weight": torch.ones(rows, 4)}
    with pytest.raises(ValueError, match=f"`{key}.lora_[AB].weight`"):
        pipe.load_lora_weights(state_dict)
    assert pipe.get_list_adapters() == {}


def test_fused_projections_of_the_transformer(unloaded):
    expected, layers, pipe = unloaded
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="projections are fused. Call `unfuse_qkv_projections"):
        pipe.load_lora_weights(layers)
    pipe.transformer.unfuse_qkv_projections()
    pipe.load_lora_weights(layers)
    assert_equal(generate(pipe), expected)
    with pytest.raises(ValueError, match="Projections with adapters cannot be fused"):
        pipe.transformer.fuse_qkv_projections()
    assert_equal(generate(pipe), expected)


def test_nothing_is_loaded_if_one_component_fails(lora_pipe, saved, monkeypatch):
    before = weights_of(lora_pipe.transformer, lora_pipe.conditioner)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lora_pipe.conditioner, "load_lora_adapter", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        lora_pipe.load_lora_weights(saved / "both", adapter_name="bells")
    assert lora_pipe.get_list_adapters() == {}
    assert lora_pipe.get_active_adapters() == []
    lora_pipe.unload_lora_weights()
    assert_equal(weights_of(lora_pipe.transformer, lora_pipe.conditioner), before)
