"""What every model does as a diffusers `ModelMixin`."""

import copy
import inspect
import json

import pytest
import torch
from diffusers import AutoModel
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from diffusers.training_utils import EMAModel
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

HALF = [torch.float16, torch.bfloat16]


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1 - torch.nn.functional.cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item()


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_output_is_reproducible(case, run):
    model = case.model()
    output = run(model, case.inputs())
    assert output.isfinite().all() and output.std() > 0
    assert torch.equal(run(model, case.inputs()), output)
    assert torch.equal(run(copy.deepcopy(model), case.inputs()), output)


@torch.no_grad()
def test_tuple_equals_output_class(case):
    model = case.model()
    as_tuple = model(**case.inputs(), return_dict=False)
    as_output = model(**case.inputs())
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(as_output.to_tuple()) == len(as_output)
    for a, b, c in zip(as_tuple, as_output.to_tuple(), as_output.values()):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_global_random_state_is_unchanged(case, run):
    model = case.model()
    before = torch.get_rng_state()
    run(model, case.inputs())
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_unchanged(case, run):
    inputs = case.inputs()
    run(case.model(), inputs)
    assert all(torch.equal(tensor, inputs[name]) for name, tensor in case.inputs().items())


def test_samples_of_a_batch_are_independent(case, run, close):
    model, inputs = case.model(), case.inputs()
    output = run(model, inputs)
    for i in range(2):
        alone = run(model, {name: tensor[i : i + 1] for name, tensor in inputs.items()})
        close(alone, output[i : i + 1], 1e-5)


def test_forward_signature(case):
    names = list(inspect.signature(case.model_class.forward).parameters)
    assert names[1 : 1 + len(case.first_arguments)] == case.first_arguments
    assert "return_dict" in names


def test_config(case, tmp_path):
    model = case.model()
    assert json.loads(model.to_json_string())["_class_name"] == case.model_class.__name__
    assert {name: model.config[name] for name in case.config} == case.config
    arguments = list(inspect.signature(case.model_class.__init__).parameters)[1:]

    model.save_config(tmp_path)
    loaded = case.model_class.from_config(case.model_class.load_config(tmp_path))
    from_config = case.model_class.from_config(model.config)
    for other in (loaded, from_config):
        assert {name: other.config[name] for name in arguments} == {name: model.config[name] for name in arguments}
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_save_and_load(case, run, tmp_path, variant):
    model = case.model()
    model.save_pretrained(tmp_path / "part", variant=variant)
    name = "diffusion_pytorch_model" + (f".{variant}" if variant else "") + ".safetensors"
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["config.json", name]
    if variant:
        with pytest.raises(OSError):
            case.model_class.from_pretrained(str(tmp_path), subfolder="part")

    for loader in (case.model_class, AutoModel):
        loaded = loader.from_pretrained(str(tmp_path), subfolder="part", variant=variant)
        assert type(loaded) is case.model_class and not loaded.training
        assert same_weights(loaded, model)
        assert torch.equal(run(loaded, case.inputs()), run(model, case.inputs()))


def test_saved_file_has_the_names_of_the_model(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors").keys() == model.state_dict().keys()


def test_load_reports_no_missing_keys(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    _, info = case.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


@pytest.fixture
def shards(case, tmp_path):
    """A model, and a folder with its weights in at least three files."""
    model = case.model()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "shards", max_shard_size=size // 3)
    index = json.loads((tmp_path / "shards" / SAFE_WEIGHTS_INDEX_NAME).read_text())
    assert len(set(index["weight_map"].values())) >= 3
    return model, tmp_path / "shards"


@pytest.mark.parametrize("device_map", [None, "auto", "balanced", {"": "cpu"}])
def test_load_shards(case, run, shards, device_map):
    model, folder = shards
    loaded = case.model_class.from_pretrained(folder, device_map=device_map)
    assert same_weights(loaded, model)
    assert torch.equal(run(loaded, case.inputs()), run(model, case.inputs()))


def test_load_shards_in_parallel(case, shards, monkeypatch):
    model, folder = shards
    monkeypatch.setattr("diffusers.models.modeling_utils.HF_ENABLE_PARALLEL_LOADING", True)
    assert same_weights(case.model_class.from_pretrained(folder), model)


def test_load_shards_of_a_variant(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path, max_shard_size=4000, variant="fp16")
    assert len(list(tmp_path.glob("*.fp16-*.safetensors"))) > 1
    assert same_weights(case.model_class.from_pretrained(tmp_path, variant="fp16"), model)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_offload_to_disk(case, run, shards, tmp_path, share):
    model, folder = shards
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loaded = case.model_class.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": int(share * size)}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    torch.testing.assert_close(run(loaded, case.inputs()), run(model, case.inputs()))


@pytest.mark.parametrize("dtype", HALF)
def test_load_in_half_precision(case, run, tmp_path, dtype):
    model = case.model()
    model.save_pretrained(tmp_path)
    loaded = case.model_class.from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded.dtype == dtype
    keep = set(case.model_class._keep_in_fp32_modules or [])
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.float32 if keep & set(name.split(".")) else dtype), name

    output = run(loaded, cast(case.inputs(), dtype))
    assert output.dtype == (torch.float32 if "decoder" in keep else dtype)
    assert cosine_distance(output, run(model, case.inputs())) < 1e-3


@pytest.mark.parametrize("dtype", HALF)
def test_save_in_half_precision(case, run, tmp_path, dtype):
    model = case.model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = case.model_class.from_pretrained(tmp_path, torch_dtype=dtype)
    inputs = cast(case.inputs(), dtype)
    assert cosine_distance(run(loaded, inputs), run(model, inputs)) < 1e-3


def training_loss(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    output = model(**inputs, return_dict=False)[0]
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    return torch.nn.functional.mse_loss(output, target)


def test_training_step(case):
    model, inputs = case.model().train(), case.inputs()
    # Empty tokens only get a gradient from samples without video and audio.
    for name in {"video_embeds", "audio_latents"} & inputs.keys():
        inputs[name][0] = 0
    ema = EMAModel(model.parameters(), decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = training_loss(model, inputs)
        losses.append(loss.item())
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
        optimizer.step()
        ema.step(model.parameters())
    assert losses[0] > losses[1] > losses[2]

    trained = training_loss(model, inputs).item()
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    assert trained < training_loss(model, inputs).item() < losses[0]
    ema.restore(model.parameters())
    assert training_loss(model, inputs).item() == trained


def test_ema_save_and_load(case, tmp_path):
    model = case.model()
    ema = EMAModel(model.parameters(), model_cls=case.model_class, model_config=model.config)
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, case.model_class)
    assert all(torch.equal(a, b) for a, b in zip(loaded.shadow_params, model.parameters()))


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(
    "level", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
)
def test_group_offload(case, run, tmp_path, level, on_disk):
    model = case.model()
    expected = run(model, case.inputs())
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_to_disk_path=str(tmp_path) if on_disk else None, **level
    )
    hooks = [m._diffusers_hook.get_hook("group_offloading") for m in model.modules() if hasattr(m, "_diffusers_hook")]
    assert any(hook is not None for hook in hooks)
    for _ in range(2):
        assert torch.equal(run(model, case.inputs()), expected)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offload", [False, True], ids=["", "offload"])
def test_layerwise_casting(case, run, compute_dtype, offload):
    model = case.model()
    expected = run(model, case.inputs())
    model.to(compute_dtype)
    if offload:
        cpu = torch.device("cpu")
        model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)

    assert model.dtype == compute_dtype
    skipped = (*DEFAULT_SKIP_MODULES_PATTERN, *(case.model_class._skip_layerwise_casting_patterns or ()))
    stored = set()
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            kept = any(pattern.strip("^$") in name for pattern in skipped)
            assert module.weight.dtype == (compute_dtype if kept else torch.float8_e4m3fn), name
            stored.add(module.weight.dtype)
    assert torch.float8_e4m3fn in stored

    for _ in range(2):
        output = run(model, cast(case.inputs(), compute_dtype))
        assert cosine_distance(output, expected) < 1e-2


def test_training_with_layerwise_casting(case):
    model, inputs = case.model().train(), case.inputs()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with torch.autocast("cpu"):
        loss = training_loss(model, inputs)
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compile(case, run):
    model = case.model()
    expected = run(model, case.inputs())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            torch.testing.assert_close(run(compiled, case.inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_repeated_blocks(case, run):
    model = case.model()
    if not model._repeated_blocks:
        with pytest.raises(ValueError, match="_repeated_blocks"):
            model.compile_repeated_blocks()
        return
    expected = run(model, case.inputs())
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    # The blocks of a transformer share one compilation. Other models have blocks of a few shapes.
    limit = 1 if case.model_class._supports_gradient_checkpointing else 4
    with torch._dynamo.config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=True):
        for _ in range(2):
            torch.testing.assert_close(run(model, case.inputs()), expected, rtol=1e-4, atol=1e-5)


def test_export(case, run):
    model = case.model()
    program = torch.export.export(model, args=(), kwargs=case.inputs() | {"return_dict": False})
    (output, *_) = program.module()(**case.inputs(), return_dict=False)
    torch.testing.assert_close(output, run(model, case.inputs()), rtol=1e-4, atol=1e-5)


def test_only_transformers_support_gradient_checkpointing(case):
    supported = case.model_class.__name__ in ("AudioXTransformer2DModel", "AudioXMMTransformer2DModel")
    model = case.model()
    assert model._supports_gradient_checkpointing == supported
    if not supported:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            model.enable_gradient_checkpointing()
        return
    assert not model.is_gradient_checkpointing
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    switched = {type(m).__name__ for m in model.modules() if getattr(m, "gradient_checkpointing", False)}
    assert switched == {case.model_class.__name__}
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("name", ["transformer", "mm-transformer"])
def test_lora_on_every_layer_of_a_block(request, run, close, tmp_path, name):
    """Save, load, fuse and unload adapters of linear layers and convolutions."""
    case = request.getfixturevalue("cases")[name]
    layers = (nn.Linear, nn.Conv1d)
    blocks = case.model().transformer_blocks
    targets = {path for path, module in blocks[0].named_modules() if isinstance(module, layers)}
    model, inputs = case.model(), case.inputs()
    base = run(model, inputs)
    config = LoraConfig(r=2, target_modules=sorted(targets), init_lora_weights=False)
    model.add_adapter(config)
    adapted = run(model, inputs)
    assert (adapted - base).abs().max() > 1e-3
    model.save_lora_adapter(tmp_path)

    other = case.model()
    other.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    close(run(other, inputs), adapted, 1e-5)
    other.fuse_lora()
    close(run(other, inputs), adapted, 1e-4)
    other.unfuse_lora()
    other.unload_lora()
    close(run(other, inputs), base, 1e-5)
