"""Adapters in a pipeline: what diffusers' own LoRA tests check, and what is specific to AudioX."""

import copy
import json

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from helpers import assert_equal
from lora_pipelines import (
    FILE,
    TARGETS,
    adapter_layers,
    add_adapter,
    build_pipeline,
    differ,
    generate,
    generate_from_audio,
    save_adapter,
    weights_of,
)
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audiox_diffusers import AudioXMMTransformer2DModel, AudioXPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"

# Saving and loading


@pytest.mark.parametrize("from_file", [False, True])
def test_save_and_load(lora_pipe, tmp_path, from_file):
    plain = generate(lora_pipe)
    add_adapter(lora_pipe)
    expected = generate(lora_pipe)
    assert differ(expected, plain)
    save_adapter(lora_pipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    lora_pipe.unload_lora_weights()
    assert_equal(generate(lora_pipe), plain)
    lora_pipe.load_lora_weights(tmp_path / FILE if from_file else str(tmp_path))
    assert_equal(generate(lora_pipe), expected)
    assert lora_pipe.get_active_adapters() == ["default_0"]


def test_bin_file_and_state_dict(lora_pipe, tmp_path):
    add_adapter(lora_pipe, lora_alpha=4)  # without metadata, alpha equals the rank
    expected = generate(lora_pipe)
    state_dict = adapter_layers(lora_pipe)
    lora_pipe.save_lora_weights(tmp_path, adapter_layers(lora_pipe, prefix=""), safe_serialization=False)
    lora_pipe.unload_lora_weights()
    lora_pipe.load_lora_weights(tmp_path / "pytorch_lora_weights.bin", low_cpu_mem_usage=False)
    assert_equal(generate(lora_pipe), expected)
    lora_pipe.unload_lora_weights()
    before = dict(state_dict)
    lora_pipe.load_lora_weights(state_dict, adapter_name="mine")
    assert_equal(generate(lora_pipe), expected)
    assert lora_pipe.get_list_adapters() == {"transformer": ["mine"]}
    assert_equal(state_dict, before)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 3, "lora_alpha": 12},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "use_dora": True},
        {"r": 4, "lora_bias": True},
        {"r": 4, "rank_pattern": {"transformer_blocks.1.attn1.to_q": 2}, "alpha_pattern": {"proj_in": 9}},
        {"r": 4, "target_modules": "transformer_blocks.0.*to_q"},
    ],
    ids=["alpha", "rslora", "dora", "bias", "patterns", "regex"],
)
def test_configuration_is_saved_and_loaded(lora_pipe, tmp_path, config):
    add_adapter(lora_pipe, **config)
    expected, before = generate(lora_pipe), lora_pipe.transformer.peft_config["default"].to_dict()
    save_adapter(lora_pipe, tmp_path)
    _, metadata = lora_pipe.lora_state_dict(str(tmp_path), return_lora_metadata=True)
    saved = {key: value for key, value in metadata.items() if key.startswith("transformer.")}
    as_json = {
        f"transformer.{key}": sorted(value) if isinstance(value, set) else value for key, value in before.items()
    }
    assert saved == json.loads(json.dumps(as_json))

    lora_pipe.unload_lora_weights()
    lora_pipe.load_lora_weights(tmp_path, adapter_name="again")
    assert_equal(generate(lora_pipe), expected)
    after = lora_pipe.transformer.peft_config["again"].to_dict()
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern"):
        assert after[name] == before[name], name
    assert set(after["target_modules"]) == set(before["target_modules"])


def test_save_a_loaded_adapter(lora_pipe, saved):
    lora_pipe.load_lora_weights(saved / "a", adapter_name="other")
    lora_pipe.load_lora_weights(saved / "both", adapter_name="bells")
    lora_pipe.save_lora_adapter(saved / "copy", "bells", weight_name="bells.safetensors")
    (path,) = (saved / "copy").iterdir()
    assert path.name == "bells.safetensors"
    assert_equal(load_file(path), load_file(saved / "both" / FILE))
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    for component in ("transformer", "conditioner"):
        assert metadata[f"{component}.r"] == 4 and metadata[f"{component}.lora_alpha"] == 6
    assert metadata["base_model.transformer"]["num_layers"] == 2
    with pytest.raises(ValueError, match="There is no adapter 'drums'. Loaded adapters: other, bells"):
        lora_pipe.save_lora_adapter(saved / "drums", "drums")
    assert not (saved / "drums").exists()


@pytest.mark.parametrize("fused", [[], ["both"], ["a", "both"]], ids=["none", "one", "two"])
def test_save_the_pipeline_with_adapters(lora_pipe, saved, warnings_of, fused, close):
    """The folder has the base weights, with what is fused."""
    plain = generate_from_audio(lora_pipe)
    for name in ("a", "both"):
        lora_pipe.load_lora_weights(saved / name, adapter_name=name)
    lora_pipe.set_adapters(["a", "both"])
    if fused:
        lora_pipe.fuse_lora(adapter_names=fused)
        lora_pipe.set_adapters(fused)
    with_adapters = generate_from_audio(lora_pipe)
    lora_pipe.save_pretrained(saved / "model")
    assert_equal(generate_from_audio(lora_pipe), with_adapters)
    loaded = [AudioXPipeline.from_pretrained(saved / "model") for _ in range(2)]
    for each in loaded:
        each.set_progress_bar_config(disable=True)
        close(generate_from_audio(each), with_adapters if fused else plain, 1e-4)
    assert_equal(generate_from_audio(loaded[0]), generate_from_audio(loaded[1]))
    said = "are saved without the adapters" in warnings_of()
    assert said == (len(fused) < 2)
    lora_pipe.unload_lora_weights()
    lora_pipe.save_pretrained(saved / "unloaded")
    weights = {name: load_file(saved / name / "transformer" / WEIGHTS) for name in ("model", "unloaded")}
    assert_equal(weights["model"], weights["unloaded"])


def test_a_failed_save_leaves_nothing(lora_pipe, tmp_path):
    add_adapter(lora_pipe)

    def fail(weights, path):
        with open(path, "w") as file:
            file.write("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        lora_pipe.save_lora_weights(tmp_path, adapter_layers(lora_pipe, prefix=""), save_function=fail)
    assert list(tmp_path.iterdir()) == []


def test_base_model_metadata_has_no_local_folders(lora_pipe, tmp_path):
    lora_pipe.register_to_config(_name_or_path=str(tmp_path / "private" / "audiox"))
    assert lora_pipe.base_model_metadata()["name"] == "audiox"
    assert lora_pipe.base_model_metadata("someone/audiox")["name"] == "someone/audiox"
    assert str(tmp_path) not in json.dumps(lora_pipe.base_model_metadata())


def test_default_names_are_free(lora_pipe, saved):
    for name in ("a", "b"):
        lora_pipe.load_lora_weights(saved / name)
    lora_pipe.delete_adapters("default_0")
    lora_pipe.load_lora_weights(saved / "both")
    assert lora_pipe.get_list_adapters() == {"transformer": ["default_1", "default_0"], "conditioner": ["default_0"]}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_peft_can_inject_layers(lora_pipe, low_cpu_mem_usage):
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    inject_adapter_in_model(config, lora_pipe.transformer, low_cpu_mem_usage=low_cpu_mem_usage)
    on_meta = any(parameter.is_meta for name, parameter in lora_pipe.transformer.named_parameters() if "lora_" in name)
    assert on_meta == low_cpu_mem_usage


# Scales, mixing


def test_scale_of_a_call(lora_pipe, close):
    plain = generate(lora_pipe)
    add_adapter(lora_pipe)
    full, half, none = (generate(lora_pipe, attention_kwargs={"scale": scale}) for scale in (1.0, 0.5, 0.0))
    close(none, plain, 1e-6)
    assert_equal(full, generate(lora_pipe))
    assert differ(half, full) and differ(half, plain)
    lora_pipe.set_adapters("default", 0.5)
    close(generate(lora_pipe), half, 1e-6)
    lora_pipe.set_adapters("default", {"transformer": 0.5})
    close(generate(lora_pipe), half, 1e-6)


def test_two_adapters_mix(lora_pipe, saved, close):
    plain = generate(lora_pipe)
    lora_pipe.load_lora_weights(saved / "a", adapter_name="a")
    only_a = generate(lora_pipe)
    lora_pipe.load_lora_weights(saved / "b", adapter_name="b")
    assert lora_pipe.get_list_adapters() == {"transformer": ["a", "b"]}
    lora_pipe.set_adapters("a")
    assert_equal(generate(lora_pipe), only_a)
    lora_pipe.set_adapters("b")
    only_b = generate(lora_pipe)
    lora_pipe.set_adapters(["a", "b"])
    both = generate(lora_pipe)
    assert lora_pipe.get_active_adapters() == ["a", "b"]
    lora_pipe.set_adapters(["a", "b"], [0.5, 0.25])
    some = generate(lora_pipe)
    outputs = [plain, only_a, only_b, both, some]
    assert all(differ(x, y) for i, x in enumerate(outputs) for y in outputs[:i])
    lora_pipe.set_adapters(["a", "b"], [1.0, 0.0])
    close(generate(lora_pipe), only_a, 1e-5)
    lora_pipe.disable_lora()
    assert_equal(generate(lora_pipe), plain)
    lora_pipe.enable_lora()
    close(generate(lora_pipe), only_a, 1e-5)

    # In one linear layer, on paper: W x + sum of w_i alpha_i / r_i B_i A_i x.
    layer, x = lora_pipe.transformer.proj_in, torch.randn(3, 128)
    lora_pipe.set_adapters(["a", "b"], [0.5, 0.25])
    expected = x @ layer.base_layer.weight.T
    for name, rank, weight in (("a", 2, 0.5), ("b", 3, 0.25)):
        expected += weight * 6 / rank * (x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T)
    close(layer(x), expected, 1e-5)


def test_deleting(lora_pipe, saved):
    plain = generate(lora_pipe)
    for name in ("a", "b"):
        lora_pipe.load_lora_weights(saved / name, adapter_name=name)
    lora_pipe.set_adapters("b")
    only_b = generate(lora_pipe)
    lora_pipe.set_adapters(["a", "b"])
    lora_pipe.delete_adapters("a")
    assert_equal(generate(lora_pipe), only_b)
    assert lora_pipe.get_list_adapters() == {"transformer": ["b"]}
    lora_pipe.delete_adapters(["b"])
    assert_equal(generate(lora_pipe), plain)
    lora_pipe.load_lora_weights(saved / "b")
    assert_equal(generate(lora_pipe), only_b)


def test_wrong_names(lora_pipe, saved, warnings_of):
    lora_pipe.load_lora_weights(saved / "a", adapter_name="a")
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        lora_pipe.set_adapters("test")
    with pytest.raises(ValueError, match="'a' is already in use"):
        lora_pipe.load_lora_weights(saved / "b", adapter_name="a")
    with pytest.raises(ValueError, match="There is no adapter 'b'. Loaded adapters: a"):
        lora_pipe.fuse_lora(adapter_names=["b"])
    lora_pipe.set_adapters("a", {"foo": 1.0})
    assert "not part of the pipeline: ['foo']" in warnings_of()


# Fusing


@pytest.mark.parametrize(
    "options", [{}, {"lora_scale": 0.7}, {"safe_fusing": True}, {"adapter_names": ["b"]}], ids=str
)
def test_fused_output_equals_unfused_output(lora_pipe, saved, close, options):
    for name in ("a", "b"):
        lora_pipe.load_lora_weights(saved / name, adapter_name=name)
    names = options.get("adapter_names", ["a", "b"])
    lora_pipe.set_adapters(names, [0.5] * len(names))
    expected = generate(lora_pipe, attention_kwargs={"scale": options.get("lora_scale", 1.0)})
    before = weights_of(lora_pipe.transformer)
    unfused = generate(lora_pipe)
    lora_pipe.fuse_lora(**options)
    assert lora_pipe.num_fused_loras == len(names) and lora_pipe.fused_loras == set(names)
    close(generate(lora_pipe), expected, 1e-4)
    lora_pipe.unfuse_lora()
    assert lora_pipe.num_fused_loras == 0
    close(generate(lora_pipe), unfused, 1e-4)
    for key, value in weights_of(lora_pipe.transformer).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6)


def test_fused_weights_remain_when_the_adapter_is_unloaded(lora_pipe, saved, close):
    lora_pipe.load_lora_weights(saved / "both")
    expected = generate_from_audio(lora_pipe)
    lora_pipe.fuse_lora()
    lora_pipe.unload_lora_weights()
    for model in (lora_pipe.transformer, lora_pipe.conditioner):
        assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    close(generate_from_audio(lora_pipe), expected, 1e-4)


def test_fusing_twice(lora_pipe, saved, close):
    for name in ("a", "b"):
        lora_pipe.load_lora_weights(saved / name, adapter_name=name)
    lora_pipe.set_adapters(["a", "b"])
    expected = generate(lora_pipe)
    lora_pipe.fuse_lora(adapter_names=["a"])
    with pytest.raises(ValueError, match="The adapter 'a' is already fused. Call `unfuse_lora\\(\\)` first"):
        lora_pipe.fuse_lora()
    lora_pipe.fuse_lora(adapter_names=["b"])
    close(generate(lora_pipe), expected, 1e-4)
    lora_pipe.unfuse_lora()
    lora_pipe.fuse_lora()
    close(generate(lora_pipe), expected, 1e-4)


def test_loading_beside_a_fused_adapter(lora_pipe, saved, close):
    lora_pipe.load_lora_weights(saved / "a", adapter_name="a")
    expected = generate(lora_pipe)
    lora_pipe.fuse_lora()
    with pytest.raises(ValueError, match="Adapters are fused: a. Before loading another one"):
        lora_pipe.load_lora_weights(saved / "b", adapter_name="b")
    close(generate(lora_pipe), expected, 1e-4)
    lora_pipe.unload_lora_weights()
    lora_pipe.load_lora_weights(saved / "b", adapter_name="b")
    lora_pipe.set_adapters("b", 0.0)
    close(generate(lora_pipe), expected, 1e-4)


def test_nothing_to_fuse(lora_pipe, warnings_of):
    lora_pipe.fuse_lora()
    assert "There is no adapter to fuse" in warnings_of()


@pytest.mark.parametrize("component", ["transformer", "conditioner"])
def test_safe_fusing_refuses_values_that_are_not_finite(lora_pipe, saved, component):
    lora_pipe.load_lora_weights(saved / "both", adapter_name="a")
    layer = next(module for module in getattr(lora_pipe, component).modules() if isinstance(module, BaseTunerLayer))
    with torch.no_grad():
        layer.lora_A["a"].weight += float("inf")
    before = weights_of(lora_pipe.transformer, lora_pipe.conditioner)
    with pytest.raises(ValueError, match="NaN or infinite values in `.*of the adapter 'a'"):
        lora_pipe.fuse_lora(safe_fusing=True)
    assert lora_pipe.num_fused_loras == 0
    assert_equal(weights_of(lora_pipe.transformer, lora_pipe.conditioner), before)
    lora_pipe.fuse_lora()
    assert lora_pipe.num_fused_loras == 1


# Layers of the conditioner


def test_layers_of_the_conditioner_come_and_go_with_the_adapter(lora_pipe, saved):
    plain, before = generate_from_audio(lora_pipe), weights_of(lora_pipe.conditioner)
    lora_pipe.load_lora_weights(saved / "both", adapter_name="bells")
    assert lora_pipe.get_list_adapters() == {"transformer": ["bells"], "conditioner": ["bells"]}
    changed = generate_from_audio(lora_pipe)
    lora_pipe.set_adapters("bells", {"transformer": 1.0, "conditioner": 0.0})
    assert differ(generate_from_audio(lora_pipe), changed)
    for off, on in (
        (lora_pipe.disable_lora, lora_pipe.enable_lora),
        (lambda: lora_pipe.delete_adapters("bells"), lambda: lora_pipe.load_lora_weights(saved / "both")),
        (lora_pipe.unload_lora_weights, lambda: lora_pipe.load_lora_weights(saved / "both")),
    ):
        off()
        assert_equal(generate_from_audio(lora_pipe), plain)
        on()
        lora_pipe.set_adapters(lora_pipe.get_list_adapters()["conditioner"])
        assert_equal(generate_from_audio(lora_pipe), changed)
    lora_pipe.unload_lora_weights()
    assert_equal(weights_of(lora_pipe.conditioner), before)


def test_active_adapters_are_the_same_in_both_components(lora_pipe, saved):
    lora_pipe.load_lora_weights(saved / "a", adapter_name="a")
    only_a = generate_from_audio(lora_pipe)
    lora_pipe.load_lora_weights(saved / "both", adapter_name="both")
    only_both = generate_from_audio(lora_pipe)
    lora_pipe.load_lora_weights(saved / "b", adapter_name="b")
    only_b = generate_from_audio(lora_pipe)
    assert lora_pipe.get_active_adapters() == ["b"]
    for name, expected in (("a", only_a), ("both", only_both), ("b", only_b)):
        lora_pipe.set_adapters(name)
        assert_equal(generate_from_audio(lora_pipe), expected)
    lora_pipe.delete_adapters("b")
    assert lora_pipe.get_active_adapters() == ["a"]
    assert_equal(generate_from_audio(lora_pipe), only_a)
    lora_pipe.delete_adapters("a")
    assert lora_pipe.get_active_adapters() == ["both"]
    assert_equal(generate_from_audio(lora_pipe), only_both)
    lora_pipe.load_lora_weights(saved / "a", adapter_name="a")
    lora_pipe.delete_adapters("both")
    assert lora_pipe.get_active_adapters() == ["a"]
    assert_equal(generate_from_audio(lora_pipe), only_a)


def test_adapter_of_the_conditioner_alone(lora_pipe, tmp_path):
    plain = generate_from_audio(lora_pipe)
    add_adapter(lora_pipe, conditioner=True)
    layers = get_peft_model_state_dict(lora_pipe.conditioner)
    lora_pipe.save_lora_weights(tmp_path, conditioner_lora_layers=layers)
    lora_pipe.unload_lora_weights()
    lora_pipe.load_lora_weights(tmp_path, adapter_name="video")
    assert lora_pipe.get_list_adapters() == {"conditioner": ["video"]}
    assert lora_pipe.get_active_adapters() == ["video"]
    assert differ(generate_from_audio(lora_pipe), plain)
    lora_pipe.delete_adapters("video")
    assert_equal(generate_from_audio(lora_pipe), plain)


def test_half_precision(lora_pipe, saved):
    lora_pipe.to(dtype=torch.bfloat16)
    plain = weights_of(lora_pipe.transformer, lora_pipe.conditioner)
    before = generate(lora_pipe)
    lora_pipe.load_lora_weights(saved / "both")
    assert differ(generate(lora_pipe), before)
    lora_pipe.unload_lora_weights()
    assert_equal(weights_of(lora_pipe.transformer, lora_pipe.conditioner), plain)
    assert_equal(generate(lora_pipe), before)


def test_scale_of_a_call_does_not_reach_the_conditioner(lora_pipe, saved, warnings_of):
    lora_pipe.load_lora_weights(saved / "both", adapter_name="bells")
    generate(lora_pipe)
    assert "does not apply to the conditioner" not in warnings_of()
    generate(lora_pipe, attention_kwargs={"scale": 0.5})
    assert "scale of 0.5 in `attention_kwargs` does not apply to the conditioner" in warnings_of()


# Adapters for another base model


def test_adapter_for_another_base_model(lora_pipe, saved):
    other = build_pipeline("dit" if isinstance(lora_pipe.transformer, AudioXMMTransformer2DModel) else "mmdit")
    before = weights_of(other.transformer, other.conditioner)
    names = [type(each.transformer).__name__ for each in (lora_pipe, other)]
    with pytest.raises(
        ValueError,
        match=f"another base model, someone/audiox: transformer._class_name was '{names[0]}' and is '{names[1]}'",
    ):
        other.load_lora_weights(saved / "both")
    assert_equal(weights_of(other.transformer, other.conditioner), before)
    assert other.get_list_adapters() == {}


def test_adapter_for_a_base_model_of_another_size(saved, lora_pipe):
    transformer = lora_pipe.transformer
    lora_pipe.transformer = type(transformer).from_config(transformer.config, num_layers=1)
    with pytest.raises(ValueError, match="transformer.num_layers was 2 and is 1"):
        lora_pipe.load_lora_weights(saved / "a")


def test_sizes_are_checked_without_metadata(lora_pipe, tmp_path):
    add_adapter(lora_pipe)
    lora_pipe.save_lora_weights(tmp_path, adapter_layers(lora_pipe, prefix=""))
    lora_pipe.unload_lora_weights()
    config = lora_pipe.transformer.config
    lora_pipe.transformer = type(lora_pipe.transformer).from_config(config, num_layers=1)
    with pytest.raises(ValueError, match=r"`transformer\.transformer_blocks\.1\..* match no LoRA layer of AudioX"):
        lora_pipe.load_lora_weights(tmp_path)
    lora_pipe.transformer = type(lora_pipe.transformer).from_config(config, attention_head_dim=48)
    with pytest.raises(ValueError, match=r"must have the shape \[(4, 96|96, 4|4, 288|288, 4)\] for `transformer\."):
        lora_pipe.load_lora_weights(tmp_path)
    assert lora_pipe.get_list_adapters() == {}


def test_adapter_for_another_conditioner(lora_pipe, saved, warnings_of):
    conditioner = lora_pipe.conditioner
    lora_pipe.conditioner = type(conditioner).from_config(conditioner.config, num_sync_tokens=8)
    lora_pipe.load_lora_weights(saved / "a")
    assert "another base model, someone/audiox: conditioner.num_sync_tokens was None and is 8" in warnings_of()
    with pytest.raises(ValueError, match="conditioner.num_sync_tokens was None and is 8"):
        lora_pipe.load_lora_weights(saved / "both")


def test_files_that_are_not_adapters(lora_pipe, tmp_path):
    with pytest.raises(ValueError, match="it has no LoRA layers"):
        lora_pipe.load_lora_weights({})
    save_file({"transformer.proj_in.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="`transformer.proj_in.weight` match no LoRA layer"):
        lora_pipe.load_lora_weights(tmp_path / "model.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:40])
    with pytest.raises(ValueError, match="half.safetensors: damaged"):
        lora_pipe.load_lora_weights(tmp_path / "half.safetensors")
    with pytest.raises(FileNotFoundError, match="There is no file .*nothing.safetensors"):
        lora_pipe.load_lora_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="Pass `transformer_lora_layers`, `conditioner_lora_layers` or both"):
        lora_pipe.save_lora_weights(tmp_path)


def test_initialization_that_changes_the_base_model(lora_pipe, tmp_path):
    add_adapter(lora_pipe, init_lora_weights="pissa")
    save_adapter(lora_pipe, tmp_path)
    lora_pipe.unload_lora_weights()
    before = weights_of(lora_pipe.transformer)
    with pytest.raises(ValueError, match="initialized with 'pissa', which changes the base model's weights"):
        lora_pipe.load_lora_weights(tmp_path)
    assert_equal(weights_of(lora_pipe.transformer), before)


# Swapping, offloading, casting


def test_hotswap(lora_pipe, saved):
    lora_pipe.load_lora_weights(saved / "b", adapter_name="b")
    only_b = generate(lora_pipe)
    lora_pipe.unload_lora_weights()
    lora_pipe.enable_lora_hotswap(target_rank=8)
    lora_pipe.load_lora_weights(saved / "both", adapter_name="mine")
    layer, only_both = lora_pipe.transformer.proj_in, generate_from_audio(lora_pipe)
    lora_pipe.load_lora_weights(saved / "b", adapter_name="mine", hotswap=True)
    assert lora_pipe.transformer.proj_in is layer and lora_pipe.get_list_adapters() == {"transformer": ["mine"]}
    torch.testing.assert_close(generate(lora_pipe), only_b, rtol=1e-4, atol=1e-4)
    lora_pipe.load_lora_weights(saved / "both", adapter_name="mine", hotswap=True)
    assert lora_pipe.get_list_adapters()["conditioner"] == ["mine"]
    torch.testing.assert_close(generate_from_audio(lora_pipe), only_both, rtol=1e-4, atol=1e-4)
    lora_pipe.load_lora_weights(saved / "both", adapter_name="mine", hotswap=True)
    torch.testing.assert_close(generate_from_audio(lora_pipe), only_both, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no existing adapter by that name"):
        lora_pipe.load_lora_weights(saved / "a", adapter_name="other", hotswap=True)
    with pytest.raises(RuntimeError, match="before loading the first adapter"):
        lora_pipe.enable_lora_hotswap(target_rank=8)


def test_layers_move_to_a_device(lora_pipe, saved):
    for name in ("a", "b"):
        lora_pipe.load_lora_weights(saved / name, adapter_name=name)
    lora_pipe.set_lora_device(["a"], "meta")
    layer = lora_pipe.transformer.transformer_blocks[0].attn1.to_q
    assert layer.lora_A["a"].weight.is_meta and not layer.lora_A["b"].weight.is_meta
    assert not layer.base_layer.weight.is_meta


def test_layerwise_casting(lora_pipe, saved, close):
    lora_pipe.load_lora_weights(saved / "a")
    expected = generate(lora_pipe)
    lora_pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    layer = lora_pipe.transformer.transformer_blocks[0].attn1.to_q
    assert layer.base_layer.weight.dtype == torch.bfloat16
    close(generate(lora_pipe), expected, 0.1)


@pytest.mark.parametrize("before", [True, False], ids=["loaded-before", "loaded-after"])
def test_group_offloading(lora_pipe, saved, close, before):
    expected = copy.deepcopy(lora_pipe)
    expected.load_lora_weights(saved / "both")
    expected = generate_from_audio(expected)
    if before:
        lora_pipe.load_lora_weights(saved / "both")
    for model in (lora_pipe.transformer, lora_pipe.conditioner):
        apply_group_offloading(
            model,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        )
    if not before:
        lora_pipe.load_lora_weights(saved / "both")
    close(generate_from_audio(lora_pipe), expected, 1e-5)


def test_compiled_transformer(lora_pipe, saved):
    expected = copy.deepcopy(lora_pipe)
    expected.load_lora_weights(saved / "both")
    lora_pipe.transformer = torch.compile(lora_pipe.transformer, backend="eager")
    lora_pipe.load_lora_weights(saved / "both")
    torch.testing.assert_close(generate_from_audio(lora_pipe), generate_from_audio(expected))
    lora_pipe.save_lora_adapter(saved / "copy", "default_0")
    assert_equal(load_file(saved / "copy" / FILE), load_file(saved / "both" / FILE))


def test_adding_an_adapter_after_unloading_another(lora_pipe):
    add_adapter(lora_pipe)
    expected = generate(lora_pipe)
    lora_pipe.unload_lora_weights()
    add_adapter(lora_pipe)
    assert_equal(generate(lora_pipe), expected)
