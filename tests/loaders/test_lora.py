"""Adapters in the pipeline: what diffusers' own tests of LoRA ask of one, and what an AudioX adapter has beside."""

import copy
import json

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.utils import logging
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audiox_diffusers import AudioXMMTransformer2DModel, AudioXPipeline, AudioXTransformer2DModel
from audiox_diffusers.testing import create_small_pipeline

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_k", "to_v", "proj_in"]
TENSORS = ("video_proj.empty_embedding", "audio_proj.proj.weight")
WIDE = {"cross_attention_input_dim": 64, "time_proj_dim": 16, "in_channels": 128, "sample_size": 125}
TRANSFORMERS = {
    "dit": (AudioXTransformer2DModel, {"num_key_value_attention_heads": 1, "cross_attention_dim": 16}),
    "mmdit": (AudioXMMTransformer2DModel, {"num_context_tokens": 269, "ff_inner_dim": 40}),
}


def build_pipeline(kind: str, num_layers: int = 2) -> AudioXPipeline:
    pipe = create_small_pipeline()
    kind, config = TRANSFORMERS[kind]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        pipe.transformer = kind(
            num_layers=num_layers, num_attention_heads=2, attention_head_dim=32, **WIDE, **config
        ).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES = {kind: build_pipeline(kind) for kind in TRANSFORMERS}


@pytest.fixture(params=TRANSFORMERS)
def pipe(request) -> AudioXPipeline:
    return copy.deepcopy(PIPELINES[request.param])


def generate(pipe: AudioXPipeline, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"prompt": "a bell", "num_inference_steps": 2, "guidance_scale": 3.0, **options}
    return pipe(generator=generator, output_type="latent", **options).audios


def add(pipe: AudioXPipeline, name: str = "default", seed: int = 0, **config) -> None:
    """An adapter with random layers that change what is heard."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        config = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": False, **config}
        pipe.transformer.add_adapter(LoraConfig(**config), adapter_name=name)


def random_tensors(pipe: AudioXPipeline, seed: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: pipe.conditioner.get_parameter(name).shape for name in TENSORS}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save(pipe: AudioXPipeline, folder, name: str = "default", tensors=None, base: bool = True, **options) -> None:
    AudioXPipeline.save_lora_weights(
        folder,
        get_peft_model_state_dict(pipe.transformer, adapter_name=name),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config[name].to_dict(),
        conditioner_tensors=tensors,
        base_model_metadata=pipe.base_model_metadata("someone/audiox") if base else None,
        **options,
    )


@pytest.fixture
def saved(pipe, tmp_path):
    """Files of three adapters, `a`, `b` and `with-tensors`, and the pipeline without any."""
    for seed, name in enumerate(("a", "b", "with-tensors")):
        made = copy.deepcopy(pipe)
        add(made, seed=seed, r=2 + seed)
        save(made, tmp_path / name, tensors=random_tensors(made, seed) if name == "with-tensors" else None)
    return tmp_path


def weights_of(*models: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{key}": value.clone() for i, model in enumerate(models) for key, value in model.state_dict().items()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max() > 1e-3 * b.abs().max()


@pytest.fixture
def warnings_of(caplog, monkeypatch):
    """What diffusers' loggers said while the test ran, and ours."""
    for name in ("diffusers", "audiox_diffusers"):
        monkeypatch.setattr(logging.get_logger(name), "propagate", True)
    return lambda: caplog.text


# Saving and loading


@pytest.mark.parametrize("from_file", [False, True])
def test_save_and_load(pipe, tmp_path, close, from_file):
    plain = generate(pipe)
    add(pipe)
    expected = generate(pipe)
    assert differ(expected, plain)
    save(pipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe), plain)
    pipe.load_lora_weights(tmp_path / FILE if from_file else str(tmp_path))
    assert torch.equal(generate(pipe), expected)
    assert pipe.get_active_adapters() == ["default_0"]


def test_a_pickled_file_and_a_state_dict(pipe, tmp_path):
    add(pipe, lora_alpha=4)  # without metadata alpha is taken for as large as the rank
    expected = generate(pipe)
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path, layers, safe_serialization=False)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "pytorch_lora_weights.bin", low_cpu_mem_usage=False)
    assert torch.equal(generate(pipe), expected)
    pipe.unload_lora_weights()
    state_dict = {f"transformer.{key}": value for key, value in layers.items()}
    pipe.load_lora_weights(state_dict, adapter_name="mine")
    assert torch.equal(generate(pipe), expected) and pipe.get_list_adapters() == {"transformer": ["mine"]}
    assert state_dict.keys() == {f"transformer.{key}" for key in layers}


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
def test_the_configuration_survives(pipe, tmp_path, config):
    add(pipe, **config)
    expected, before = generate(pipe), pipe.transformer.peft_config["default"].to_dict()
    save(pipe, tmp_path)
    _, metadata = pipe.lora_state_dict(str(tmp_path), return_lora_metadata=True)
    there = {key: value for key, value in metadata.items() if key.startswith("transformer.")}
    as_json = {
        f"transformer.{key}": sorted(value) if isinstance(value, set) else value for key, value in before.items()
    }
    assert there == json.loads(json.dumps(as_json))

    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, adapter_name="again")
    assert torch.equal(generate(pipe), expected)
    after = pipe.transformer.peft_config["again"].to_dict()
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern"):
        assert after[name] == before[name], name
    assert set(after["target_modules"]) == set(before["target_modules"])


def test_a_loaded_adapter_is_saved_whole(pipe, saved):
    pipe.load_lora_weights(saved / "a", adapter_name="other")
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="bells")
    pipe.save_lora_adapter(saved / "copy", "bells", weight_name="bells.safetensors")
    (path,) = (saved / "copy").iterdir()
    assert path.name == "bells.safetensors"
    assert_same(load_file(path), load_file(saved / "with-tensors" / FILE))
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.r"] == 4 and metadata["transformer.lora_alpha"] == 6
    assert metadata["base_model.transformer"]["num_layers"] == 2
    with pytest.raises(ValueError, match="There is no adapter 'drums', but other, bells"):
        pipe.save_lora_adapter(saved / "drums", "drums")
    assert not (saved / "drums").exists()


def test_the_base_model_in_the_metadata_tells_nothing_of_the_machine(pipe, tmp_path):
    pipe.register_to_config(_name_or_path=str(tmp_path / "private" / "audiox"))
    assert pipe.base_model_metadata()["name"] == "audiox"
    assert pipe.base_model_metadata("someone/audiox")["name"] == "someone/audiox"
    assert str(tmp_path) not in json.dumps(pipe.base_model_metadata())


def test_alphas_of_other_trainers(pipe, close):
    add(pipe, lora_alpha=2)
    expected = generate(pipe)
    layers = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(pipe.transformer).items()}
    alphas = {f"{key.split('.lora_')[0]}.alpha": torch.tensor(2.0) for key in layers}
    pipe.unload_lora_weights()
    pipe.load_lora_weights(layers | alphas)
    close(generate(pipe), expected)
    assert next(iter(pipe.transformer.peft_config.values())).lora_alpha == 2


def test_layers_that_are_missing_or_not_known_are_warned_of(pipe, warnings_of):
    add(pipe)
    layers = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(pipe.transformer).items()}
    pipe.unload_lora_weights()
    missing, unknown = [key for key in layers if "lora_A" in key][:2]
    tensor = layers.pop(missing)
    pipe.load_lora_weights(layers | {f"{unknown}.extra": tensor})
    said = warnings_of().replace("default_0.", "")
    assert missing.removeprefix("transformer.") in said and ".extra" in said


def test_layers_of_another_component_are_warned_of(pipe, warnings_of):
    plain = generate(pipe)
    pipe.load_lora_weights({"lora_foo": torch.tensor(2.0)})
    assert f"No LoRA keys associated to {type(pipe.transformer).__name__}" in warnings_of()
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_layers_can_be_injected_by_peft(pipe, tmp_path, low_cpu_mem_usage):
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    inject_adapter_in_model(config, pipe.transformer, low_cpu_mem_usage=low_cpu_mem_usage)
    on_meta = any(parameter.is_meta for name, parameter in pipe.transformer.named_parameters() if "lora_" in name)
    assert on_meta == low_cpu_mem_usage


# Scales, mixing


def test_scale_of_a_call(pipe, close):
    plain = generate(pipe)
    add(pipe)
    full, half, none = (generate(pipe, attention_kwargs={"scale": scale}) for scale in (1.0, 0.5, 0.0))
    close(none, plain, 1e-6)
    assert torch.equal(full, generate(pipe)) and differ(half, full) and differ(half, plain)
    pipe.set_adapters("default", 0.5)
    close(generate(pipe), half, 1e-6)
    pipe.set_adapters("default", {"transformer": 0.5})
    close(generate(pipe), half, 1e-6)


def test_two_adapters_mix(pipe, saved, close):
    plain = generate(pipe)
    pipe.load_lora_weights(saved / "a", adapter_name="a")
    only_a = generate(pipe)
    pipe.load_lora_weights(saved / "b", adapter_name="b")
    assert pipe.get_list_adapters() == {"transformer": ["a", "b"]}
    pipe.set_adapters("a")
    assert torch.equal(generate(pipe), only_a)
    pipe.set_adapters("b")
    only_b = generate(pipe)
    pipe.set_adapters(["a", "b"])
    both = generate(pipe)
    assert pipe.get_active_adapters() == ["a", "b"]
    pipe.set_adapters(["a", "b"], [0.5, 0.25])
    some = generate(pipe)
    sounds = [plain, only_a, only_b, both, some]
    assert all(differ(x, y) for i, x in enumerate(sounds) for y in sounds[:i])
    pipe.set_adapters(["a", "b"], [1.0, 0.0])
    close(generate(pipe), only_a, 1e-5)
    pipe.disable_lora()
    assert torch.equal(generate(pipe), plain)
    pipe.enable_lora()
    close(generate(pipe), only_a, 1e-5)

    # In one linear layer, on paper: W x + sum of w_i alpha_i / r_i B_i A_i x.
    layer, x = pipe.transformer.proj_in, torch.randn(3, 128)
    pipe.set_adapters(["a", "b"], [0.5, 0.25])
    expected = x @ layer.base_layer.weight.T
    for name, rank, weight in (("a", 2, 0.5), ("b", 3, 0.25)):
        expected += weight * 6 / rank * (x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T)
    close(layer(x), expected, 1e-5)


def test_deleting(pipe, saved):
    plain = generate(pipe)
    for name in ("a", "b"):
        pipe.load_lora_weights(saved / name, adapter_name=name)
    pipe.set_adapters("b")
    only_b = generate(pipe)
    pipe.set_adapters(["a", "b"])
    pipe.delete_adapters("a")
    assert torch.equal(generate(pipe), only_b) and pipe.get_list_adapters() == {"transformer": ["b"]}
    pipe.delete_adapters(["b"])
    assert torch.equal(generate(pipe), plain)
    pipe.load_lora_weights(saved / "b")
    assert torch.equal(generate(pipe), only_b)


def test_wrong_names(pipe, saved, warnings_of):
    pipe.load_lora_weights(saved / "a", adapter_name="a")
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        pipe.set_adapters("test")
    with pytest.raises(ValueError, match="already in use"):
        pipe.load_lora_weights(saved / "b", adapter_name="a")
    with pytest.raises(ValueError, match="There is no adapter 'b', but a"):
        pipe.fuse_lora(adapter_names=["b"])
    pipe.set_adapters("a", {"foo": 1.0})
    assert "not part of the pipeline: ['foo']" in warnings_of()


# Fusing


@pytest.mark.parametrize(
    "options", [{}, {"lora_scale": 0.7}, {"safe_fusing": True}, {"adapter_names": ["b"]}], ids=str
)
def test_fusing_equals_the_unfused_output(pipe, saved, close, options):
    for name in ("a", "b"):
        pipe.load_lora_weights(saved / name, adapter_name=name)
    names = options.get("adapter_names", ["a", "b"])
    pipe.set_adapters(names, [0.5] * len(names))
    expected = generate(pipe, attention_kwargs={"scale": options.get("lora_scale", 1.0)})
    before = weights_of(pipe.transformer)
    unfused = generate(pipe)
    pipe.fuse_lora(**options)
    assert pipe.num_fused_loras == len(names) and pipe.fused_loras == set(names)
    close(generate(pipe), expected, 1e-4)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    close(generate(pipe), unfused, 1e-4)
    for key, value in weights_of(pipe.transformer).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6)


def test_fused_weights_stay_when_the_adapter_is_unloaded(pipe, saved, close):
    pipe.load_lora_weights(saved / "with-tensors")
    expected = generate(pipe, audio=(torch.ones(1, 8000), 8000))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert not any(isinstance(module, BaseTunerLayer) for module in pipe.transformer.modules())
    close(generate(pipe, audio=(torch.ones(1, 8000), 8000)), expected, 1e-4)


def test_fusing_twice(pipe, saved, close):
    for name in ("a", "b"):
        pipe.load_lora_weights(saved / name, adapter_name=name)
    pipe.set_adapters(["a", "b"])
    expected = generate(pipe)
    pipe.fuse_lora(adapter_names=["a"])
    with pytest.raises(ValueError, match="The adapter 'a' is fused already; call `unfuse_lora\\(\\)` first"):
        pipe.fuse_lora()
    pipe.fuse_lora(adapter_names=["b"])
    close(generate(pipe), expected, 1e-4)
    pipe.unfuse_lora()
    pipe.fuse_lora()
    close(generate(pipe), expected, 1e-4)


def test_nothing_to_fuse(pipe, warnings_of):
    pipe.fuse_lora()
    assert "There is no adapter to fuse" in warnings_of()


@pytest.mark.parametrize("where", ["transformer", "conditioner"])
def test_broken_weights_are_not_fused_when_it_is_to_be_safe(pipe, saved, where):
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="a")
    before = weights_of(pipe.transformer, pipe.conditioner)
    with torch.no_grad():
        if where == "transformer":
            pipe.transformer.transformer_blocks[1].attn1.to_q.lora_A["a"].weight += float("inf")
            before = weights_of(pipe.transformer, pipe.conditioner)
        else:
            pipe.conditioner.full_tensors("a")[TENSORS[0]][:] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected in `.*of the adapter 'a'"):
        pipe.fuse_lora(safe_fusing=True)
    assert pipe.num_fused_loras == 0
    assert_same(weights_of(pipe.transformer, pipe.conditioner), before)
    pipe.fuse_lora()
    assert torch.isnan(generate(pipe, prompt=None, audio=(torch.ones(1, 8000), 8000))).all()


# The conditioner's part


def test_tensors_of_the_conditioner(pipe, saved, close):
    before = weights_of(pipe.conditioner)
    tensors = random_tensors(pipe, 2)
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="bells")
    assert pipe.get_list_adapters() == {"transformer": ["bells"], "conditioner": ["bells"]}
    own = dict(pipe.conditioner.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    assert {key for key, value in weights_of(pipe.conditioner).items() if not torch.equal(value, before[key])} == {
        f"0.{name}" for name in TENSORS
    }
    for off, on in (
        (pipe.disable_lora, pipe.enable_lora),
        (lambda: pipe.set_adapters("bells", 0.0), lambda: pipe.set_adapters("bells")),
        (lambda: pipe.delete_adapters("bells"), lambda: pipe.load_lora_weights(saved / "with-tensors")),
        (pipe.unload_lora_weights, lambda: pipe.load_lora_weights(saved / "with-tensors")),
    ):
        off()
        assert_same(weights_of(pipe.conditioner), before)
        on()
        assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    pipe.set_adapters(pipe.get_active_adapters(), 0.25)
    for name, tensor in tensors.items():
        close(own[name], before[f"0.{name}"] + 0.25 * (tensor - before[f"0.{name}"]), 1e-6)
    pipe.unload_lora_weights()
    assert_same(weights_of(pipe.conditioner), before)


def test_tensors_of_two_adapters(pipe, saved, tmp_path, close):
    add(pipe)
    base = {name: pipe.conditioner.get_parameter(name).detach().clone() for name in TENSORS}
    first, second = random_tensors(pipe, 2), random_tensors(pipe, 9)
    save(pipe, tmp_path / "second", tensors={TENSORS[0]: second[TENSORS[0]]})
    pipe.unload_lora_weights()
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="first")
    pipe.load_lora_weights(tmp_path / "second", adapter_name="second")
    pipe.load_lora_weights(saved / "a", adapter_name="a")
    pipe.set_adapters(["first", "second", "a"], [0.5, 0.25, 1.0])
    name = TENSORS[0]
    mixed = base[name] + 0.5 * (first[name] - base[name]) + 0.25 * (second[name] - base[name])
    close(pipe.conditioner.get_parameter(name), mixed, 1e-6)
    name = TENSORS[1]
    close(pipe.conditioner.get_parameter(name), base[name] + 0.5 * (first[name] - base[name]), 1e-6)
    # What is active here is what is active in the transformer, also when that is changed on the way.
    pipe.delete_adapters(["second"])
    pipe.set_adapters("a")
    assert torch.equal(pipe.conditioner.get_parameter(name), base[name])
    pipe.delete_adapters("a")
    assert pipe.get_active_adapters() == ["first"]
    close(pipe.conditioner.get_parameter(name), base[name] + 0.5 * (first[name] - base[name]), 1e-6)


def test_fused_tensors(pipe, saved, close):
    plain = weights_of(pipe.conditioner)
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="bells")
    pipe.load_lora_weights(saved / "a", adapter_name="a")
    pipe.set_adapters("bells")
    tensors = pipe.conditioner.full_tensors("bells")
    pipe.fuse_lora(lora_scale=0.5)
    pipe.set_adapters("a")
    name = TENSORS[1]
    halfway = plain[f"0.{name}"] + 0.5 * (tensors[name] - plain[f"0.{name}"])
    close(pipe.conditioner.get_parameter(name), halfway, 1e-6)
    pipe.delete_adapters("bells")
    close(pipe.conditioner.get_parameter(name), halfway, 1e-6)
    pipe.unload_lora_weights()
    close(pipe.conditioner.get_parameter(name), halfway, 1e-6)


def test_unfused_tensors_come_back_to_the_last_bit(pipe, saved):
    plain = weights_of(pipe.conditioner)
    pipe.load_lora_weights(saved / "with-tensors")
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert_same(weights_of(pipe.conditioner), plain)


def test_half_precision(pipe, saved):
    pipe.to(dtype=torch.bfloat16)
    plain = weights_of(pipe.transformer, pipe.conditioner)
    before = generate(pipe)
    pipe.load_lora_weights(saved / "with-tensors")
    assert differ(generate(pipe), before)
    pipe.unload_lora_weights()
    assert_same(weights_of(pipe.transformer, pipe.conditioner), plain)
    assert torch.equal(generate(pipe), before)


def test_the_scale_of_a_call_does_not_reach_the_conditioner(pipe, saved, warnings_of):
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="bells")
    generate(pipe)
    assert "does not reach the conditioner" not in warnings_of()
    generate(pipe, attention_kwargs={"scale": 0.5})
    assert "scale of 0.5 in `attention_kwargs` does not reach the conditioner" in warnings_of()


# Adapters that do not belong here


def test_an_adapter_for_another_base(pipe, saved):
    other = build_pipeline("dit" if isinstance(pipe.transformer, AudioXMMTransformer2DModel) else "mmdit")
    before = weights_of(other.transformer, other.conditioner)
    names = [type(each.transformer).__name__ for each in (pipe, other)]
    with pytest.raises(
        ValueError,
        match=f"another base model, someone/audiox: transformer._class_name was '{names[0]}' and is '{names[1]}'",
    ):
        other.load_lora_weights(saved / "with-tensors")
    assert_same(weights_of(other.transformer, other.conditioner), before)
    assert other.get_list_adapters() == {}


def test_an_adapter_for_a_base_of_another_size(saved, pipe):
    transformer = pipe.transformer
    pipe.transformer = type(transformer).from_config(transformer.config, num_layers=1)
    with pytest.raises(ValueError, match="transformer.num_layers was 2 and is 1"):
        pipe.load_lora_weights(saved / "a")


def test_sizes_are_checked_without_metadata(pipe, tmp_path):
    add(pipe)
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path, layers)
    pipe.unload_lora_weights()
    config = pipe.transformer.config
    pipe.transformer = type(pipe.transformer).from_config(config, num_layers=1)
    with pytest.raises(ValueError, match=r"has no module `transformer_blocks\.1\."):
        pipe.load_lora_weights(tmp_path)
    pipe.transformer = type(pipe.transformer).from_config(config, attention_head_dim=48)
    kind = type(pipe.transformer).__name__
    with pytest.raises(ValueError, match=f"of {kind} has (96|288) (in|out)put features, in the adapter (64|192)"):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {}


def test_an_adapter_for_another_conditioner(pipe, saved, warnings_of):
    conditioner = pipe.conditioner
    pipe.conditioner = type(conditioner).from_config(conditioner.config, num_sync_tokens=8)
    pipe.load_lora_weights(saved / "a")
    assert "someone/audiox, whose conditioner differs: conditioner.num_sync_tokens was None and is 8" in warnings_of()
    with pytest.raises(ValueError, match="conditioner.num_sync_tokens was None and is 8"):
        pipe.load_lora_weights(saved / "with-tensors")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"video_proj.unknown": torch.zeros(2)}, "AudioXConditioner has no `video_proj.unknown`"),
        ({TENSORS[0]: torch.zeros(2, 3)}, r"has the shape \[1, 16, 64\], that of the adapter \[2, 3\]"),
    ],
)
def test_tensors_that_do_not_fit(pipe, tmp_path, tensors, said):
    add(pipe)
    save(pipe, tmp_path, tensors=tensors, base=False)
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match=said):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {}


def test_what_is_no_adapter(pipe, tmp_path):
    with pytest.raises(ValueError, match="it has no LoRA layers"):
        pipe.load_lora_weights({"conditioner.video_proj.empty_embedding": torch.zeros(1, 16, 64)})
    save_file({"transformer.proj_in.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="`transformer.proj_in.weight` is no LoRA layer"):
        pipe.load_lora_weights(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="There is no file .*nothing.safetensors"):
        pipe.load_lora_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="`transformer_lora_layers` must be given"):
        pipe.save_lora_weights(tmp_path)


def test_rank_0(pipe, saved):
    layers = load_file(saved / "a" / FILE)
    empty = {key: value[:0] if "lora_A" in key else value[:, :0] for key, value in layers.items()}
    with pytest.raises(ValueError, match="rank must be at least 1, got 0 for `"):
        pipe.load_lora_weights(empty)
    with safe_open(saved / "a" / FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    metadata["transformer.r"] = 0
    save_file(layers, saved / "a" / FILE, {"lora_adapter_metadata": json.dumps(metadata)})
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        pipe.load_lora_weights(saved / "a")


def test_layers_that_came_out_of_the_base(pipe, tmp_path):
    add(pipe, init_lora_weights="pissa")
    save(pipe, tmp_path)
    pipe.unload_lora_weights()
    before = weights_of(pipe.transformer)
    with pytest.raises(ValueError, match="initialised with 'pissa', which changes the base model's weights"):
        pipe.load_lora_weights(tmp_path)
    assert_same(weights_of(pipe.transformer), before)


# Swapping, offloading, casting


def test_hotswap(pipe, saved):
    pipe.load_lora_weights(saved / "b", adapter_name="b")
    only_b = generate(pipe)
    pipe.unload_lora_weights()
    conditioner = weights_of(pipe.conditioner)
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="mine")
    layer = pipe.transformer.proj_in
    pipe.load_lora_weights(saved / "b", adapter_name="mine", hotswap=True)
    assert pipe.transformer.proj_in is layer and pipe.get_list_adapters() == {"transformer": ["mine"]}
    assert_same(weights_of(pipe.conditioner), conditioner)
    torch.testing.assert_close(generate(pipe), only_b, rtol=1e-4, atol=1e-4)
    pipe.load_lora_weights(saved / "with-tensors", adapter_name="mine", hotswap=True)
    assert pipe.get_list_adapters()["conditioner"] == ["mine"]
    with pytest.raises(ValueError, match="no existing adapter by that name"):
        pipe.load_lora_weights(saved / "a", adapter_name="other", hotswap=True)
    with pytest.raises(RuntimeError, match="before loading the first adapter"):
        pipe.enable_lora_hotswap(target_rank=8)


def test_layers_move_to_a_device(pipe, saved):
    for name in ("a", "b"):
        pipe.load_lora_weights(saved / name, adapter_name=name)
    pipe.set_lora_device(["a"], "meta")
    layer = pipe.transformer.transformer_blocks[0].attn1.to_q
    assert layer.lora_A["a"].weight.is_meta and not layer.lora_A["b"].weight.is_meta
    assert not layer.base_layer.weight.is_meta


def test_layerwise_casting(pipe, saved, close):
    pipe.load_lora_weights(saved / "a")
    expected = generate(pipe)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    layer = pipe.transformer.transformer_blocks[0].attn1.to_q
    assert layer.base_layer.weight.dtype == torch.bfloat16
    close(generate(pipe), expected, 0.1)


@pytest.mark.parametrize("before", [True, False], ids=["loaded-before", "loaded-after"])
def test_group_offloading(pipe, saved, close, before):
    expected = copy.deepcopy(pipe)
    expected.load_lora_weights(saved / "a")
    expected = generate(expected)
    if before:
        pipe.load_lora_weights(saved / "a")
    for model in (pipe.transformer, pipe.conditioner):
        apply_group_offloading(
            model,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        )
    if not before:
        pipe.load_lora_weights(saved / "a")
    close(generate(pipe), expected, 1e-5)


def test_an_offloaded_conditioner_is_not_written_to(pipe, saved):
    pipe.conditioner.to("meta")
    with pytest.raises(ValueError, match="is offloaded; load adapters before that"):
        pipe.load_lora_weights(saved / "with-tensors")
    assert pipe.get_list_adapters() == {}


def test_an_adapter_can_be_added_after_another_was_unloaded(pipe):
    add(pipe)
    expected = generate(pipe)
    pipe.unload_lora_weights()
    add(pipe)
    assert torch.equal(generate(pipe), expected)
