import math
import shutil

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    attention_backend,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from audiox_diffusers import AudioXTransformer2DModel
from audiox_diffusers.models.attention_audiox import AudioXAttention, AudioXAttnProcessor
from audiox_diffusers.models.transformer_audiox import AudioXFourierEmbedding


@pytest.fixture
def model(transformer_case):
    return transformer_case.model()


@pytest.fixture
def inputs(transformer_case):
    return transformer_case.inputs()


def reference(weights: dict, config, x, timestep, context) -> torch.Tensor:
    """The written-out network: one head at a time, with the time token at position 0."""
    heads, head_dim = config.num_attention_heads, config.attention_head_dim

    def linear(name, hidden):
        out = hidden @ weights[f"{name}.weight"].squeeze(-1).T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    def norm(name, hidden):
        centered = hidden - hidden.mean(-1, keepdim=True)
        return centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]

    def rotate(hidden):
        half = max(head_dim // 2, 32) // 2
        out = hidden.clone()
        for position in range(hidden.shape[1]):
            for i in range(half):
                angle = position * 10000.0 ** (-i / half)
                a, b = hidden[:, position, i], hidden[:, position, half + i]
                out[:, position, i] = a * math.cos(angle) - b * math.sin(angle)
                out[:, position, half + i] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def attend(name, hidden, memory, kv_heads, rotary):
        query, key, value = (
            linear(f"{name}.to_q", hidden),
            linear(f"{name}.to_k", memory),
            linear(f"{name}.to_v", memory),
        )
        outputs = []
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            q = query[..., head * head_dim : (head + 1) * head_dim]
            k, v = (y[..., kv_head * head_dim : (kv_head + 1) * head_dim] for y in (key, value))
            if rotary:
                q, k = rotate(q), rotate(k)
            scores = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(head_dim)
            outputs.append(torch.einsum("bqk,bkd->bqd", scores.softmax(-1), v))
        return linear(f"{name}.to_out.0", torch.cat(outputs, -1))

    def two_layers(name, hidden):
        hidden = linear(f"{name}.linear_1", hidden)
        return linear(f"{name}.linear_2", hidden * hidden.sigmoid())

    hidden = x.transpose(1, 2)
    hidden = linear("proj_in", hidden + linear("preprocess_conv", hidden))
    angles = 2 * math.pi * timestep[:, None] * weights["time_proj.weight"][:, 0]
    time_token = two_layers("time_embed", torch.cat((angles.cos(), angles.sin()), -1))
    hidden = torch.cat((time_token[:, None], hidden), 1)
    context = two_layers("context_embed", context)
    for i in range(config.num_layers):
        block = f"transformer_blocks.{i}"
        normed = norm(f"{block}.norm1", hidden)
        hidden = hidden + attend(f"{block}.attn1", normed, normed, heads, rotary=True)
        normed = norm(f"{block}.norm2", hidden)
        hidden = hidden + attend(f"{block}.attn2", normed, context, config.num_key_value_attention_heads, rotary=False)
        value, gate = linear(f"{block}.ff.net.0.proj", norm(f"{block}.norm3", hidden)).chunk(2, -1)
        hidden = hidden + linear(f"{block}.ff.net.2", value * gate * gate.sigmoid())
    out = linear("proj_out", hidden[:, 1:])
    return (out + linear("postprocess_conv", out)).transpose(1, 2)


# A head of width 40 has 32 rotated dimensions, a head of width 80 has 40.
@pytest.mark.parametrize("head_dim", [32, 40, 80])
@pytest.mark.parametrize("length", [9, 14])
def test_known_answer(transformer_case, run, close, head_dim, length):
    model = transformer_case.model(attention_head_dim=head_dim)
    inputs = transformer_case.inputs()
    inputs["hidden_states"] = torch.randn(2, 4, length, generator=torch.Generator().manual_seed(3))
    close(run(model, inputs), reference(model.state_dict(), model.config, *inputs.values()), 1e-5)


def test_depends_on_every_input(model, inputs, run):
    output = run(model, inputs)
    for name, tensor in inputs.items():
        assert not torch.allclose(run(model, inputs | {name: tensor * 0.9}), output, atol=1e-3)


def test_null_context_has_no_effect(model, inputs, run):
    attended = []
    for block in model.transformer_blocks:
        block.attn2.register_forward_hook(lambda module, args, output: attended.append(output))
    null = torch.zeros_like(inputs["encoder_hidden_states"])
    output = run(model, inputs | {"encoder_hidden_states": null})
    assert len(attended) == 3 and not any(tensor.any() for tensor in attended)
    assert torch.equal(run(model, inputs | {"encoder_hidden_states": null[:, :1]}), output)


def test_context_is_a_set(model, inputs, run, close):
    shuffled = inputs["encoder_hidden_states"].flip(1)
    close(run(model, inputs | {"encoder_hidden_states": shuffled}), run(model, inputs), 1e-5)


def test_bad_head_dim(transformer_case):
    with pytest.raises(ValueError, match="attention_head_dim"):
        transformer_case.model(attention_head_dim=16)


def test_bad_kv_heads(transformer_case):
    with pytest.raises(ValueError, match="kv_heads"):
        transformer_case.model(num_key_value_attention_heads=3)


def test_gradient_checkpointing_gives_the_same_gradients(transformer_case, inputs):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = transformer_case.model().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.transformer_blocks[1].register_forward_pre_hook(lambda *args: calls.append(checkpointing))  # noqa: B023
        loss = model(**inputs).sample.square().mean()
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert calls == [False, True, True]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_compile_with_inductor(transformer_case, inputs, run, close):
    torch._dynamo.reset()
    model = transformer_case.model(num_layers=2)
    expected = run(model, inputs)
    model.compile_repeated_blocks(fullgraph=True)
    close(run(model, inputs), expected, 1e-5)
    torch._dynamo.reset()


def test_compile_for_any_length(transformer_case, inputs, run, close):
    torch._dynamo.reset()
    model = transformer_case.model(num_layers=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (9, 12, 15):
            longer = inputs | {"hidden_states": torch.ones(2, 4, length)}
            close(run(compiled, longer), run(model, longer), 1e-5)
    torch._dynamo.reset()


def attention_layers(model):
    return [module for module in model.modules() if isinstance(module, AudioXAttention)]


@pytest.fixture
def default_backend():
    """Setting the backend of one model also sets it for the whole process."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


@pytest.mark.usefixtures("default_backend")
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backend(model, inputs, run, close, backend):
    expected = run(model, inputs)
    with attention_backend(backend):
        in_context = run(model, inputs)
    model.set_attention_backend(backend)
    assert all(layer.processor._attention_backend.value == backend for layer in attention_layers(model))
    close(run(model, inputs), expected, 1e-5)
    assert torch.equal(run(model, inputs), in_context)
    model.reset_attention_backend()
    assert all(layer.processor._attention_backend is None for layer in attention_layers(model))


@pytest.mark.usefixtures("default_backend")
def test_attention_backend_is_used(model, inputs):
    with pytest.raises(ValueError, match="backend"):
        model.set_attention_backend("no_such_backend")
    for layer in attention_layers(model):
        layer.processor._attention_backend = "no_such_backend"
    with pytest.raises((KeyError, ValueError, AttributeError)):
        model(**inputs)


def test_fuse_qkv_projections(model, inputs, run, close):
    expected, names = run(model, inputs), set(model.state_dict())
    model.fuse_qkv_projections()
    for layer in attention_layers(model):
        assert layer.fused_projections
        assert hasattr(layer, "to_kv" if layer.is_cross_attention else "to_qkv")
        layer.to_k.weight.data.zero_()
    close(run(model, inputs), expected, 1e-5)
    model.unfuse_qkv_projections()
    assert set(model.state_dict()) == names
    assert not torch.allclose(run(model, inputs), expected, atol=1e-3)


def test_attention_processors(model, inputs, run):
    class Silent(AudioXAttnProcessor):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return torch.zeros_like(super().__call__(attn, hidden_states, *args, **kwargs))

    expected = run(model, inputs)
    processors = model.attn_processors
    assert set(processors) == {f"transformer_blocks.{i}.attn{j}.processor" for i in range(3) for j in (1, 2)}
    assert len({id(processor) for processor in processors.values()}) == 6
    assert all(layer.get_processor() is layer.processor for layer in attention_layers(model))

    model.set_attn_processor(Silent())
    assert all(type(processor) is Silent for processor in model.attn_processors.values())
    assert not torch.allclose(run(model, inputs), expected, atol=1e-3)
    model.set_attn_processor(dict(processors))
    assert torch.equal(run(model, inputs), expected)
    with pytest.raises(ValueError, match="number of attention layers"):
        model.set_attn_processor({"transformer_blocks.0.attn1.processor": AudioXAttnProcessor()})


LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def lora_model(model):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        config = LoraConfig(r=3, lora_alpha=6, target_modules=LORA_LAYERS, init_lora_weights=False)
        model.add_adapter(config)
    return model


def test_lora_save_and_load(transformer_case, lora_model, inputs, run, tmp_path):
    expected, plain = run(lora_model, inputs), transformer_case.model()
    assert sum(parameter.requires_grad for parameter in lora_model.parameters()) == 3 * 2 * 4 * 2
    lora_model.save_lora_adapter(tmp_path)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert "lora_adapter_metadata" in file.metadata()
        assert set(file.keys()) == set(get_peft_model_state_dict(lora_model))

    assert not torch.allclose(run(plain, inputs), expected, atol=1e-3)
    plain.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, adapter_name="again")
    assert plain.peft_config["again"].lora_alpha == 6
    assert torch.equal(run(plain, inputs), expected)


def test_lora_of_unknown_name(lora_model, tmp_path):
    with pytest.raises(ValueError, match="wrong not found"):
        lora_model.save_lora_adapter(tmp_path, adapter_name="wrong")


def test_lora_scale(transformer_case, lora_model, inputs, run, close):
    base, expected = run(transformer_case.model(), inputs), run(lora_model, inputs)
    assert torch.equal(run(lora_model, inputs | {"attention_kwargs": {"scale": 1.0}}), expected)
    close(run(lora_model, inputs | {"attention_kwargs": {"scale": 0.0}}), base, 1e-6)
    half = run(lora_model, inputs | {"attention_kwargs": {"scale": 0.5}})
    assert not torch.allclose(half, base, atol=1e-3) and not torch.allclose(half, expected, atol=1e-3)
    assert torch.equal(run(lora_model, inputs), expected)


def test_lora_switch_and_delete(transformer_case, lora_model, inputs, run, close):
    base, expected = run(transformer_case.model(), inputs), run(lora_model, inputs)
    lora_model.disable_adapters()
    close(run(lora_model, inputs), base, 1e-6)
    lora_model.enable_adapters()
    lora_model.set_adapters("default", 0.5)
    assert not torch.allclose(run(lora_model, inputs), expected, atol=1e-3)
    lora_model.set_adapters("default", 1.0)
    assert torch.equal(run(lora_model, inputs), expected)
    lora_model.delete_adapters("default")
    close(run(lora_model, inputs), base, 1e-6)


def test_lora_fuse(transformer_case, lora_model, inputs, run, close):
    base, expected = run(transformer_case.model(), inputs), run(lora_model, inputs)
    lora_model.fuse_lora()
    close(run(lora_model, inputs), expected, 1e-5)
    lora_model.unfuse_lora()
    lora_model.unload_lora()
    close(run(lora_model, inputs), base, 1e-5)
    assert set(lora_model.state_dict()) == set(transformer_case.model().state_dict())


def test_lora_training(lora_model, inputs):
    lora_model.train()
    lora_model.enable_gradient_checkpointing()
    lora_model(**inputs).sample.square().mean().backward()
    for name, parameter in lora_model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_lora_with_layerwise_casting(lora_model, inputs, run, close):
    expected = run(lora_model, inputs)
    lora_model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    layer = lora_model.transformer_blocks[0].attn1.to_q
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn
    assert layer.lora_A["default"].weight.dtype == torch.float32
    close(run(lora_model, inputs), expected, 0.2)


def test_lora_hotswap(transformer_case, lora_model, inputs, run, tmp_path):
    expected = run(lora_model, inputs)
    lora_model.save_lora_adapter(tmp_path)
    other = transformer_case.model()
    other.enable_lora_hotswap(target_rank=5)
    other.add_adapter(LoraConfig(r=5, target_modules=LORA_LAYERS, init_lora_weights=False), adapter_name="slot")
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, adapter_name="slot", hotswap=True)
    torch.testing.assert_close(run(other, inputs), expected)


def denoise(model, inputs, run, calls=6, step=0.02) -> torch.Tensor:
    """Return the outputs of a few steps, each with the null context and with a context."""
    outputs = []
    for i in range(calls):
        now = inputs | {"hidden_states": inputs["hidden_states"] * (1 - step * i)}
        with model.cache_context("uncond"):
            null = now | {"encoder_hidden_states": torch.zeros_like(now["encoder_hidden_states"])}
            outputs.append(run(model, null))
        with model.cache_context("cond"):
            outputs.append(run(model, now))
    return torch.stack(outputs)


FIRST_BLOCK = {
    "config": lambda: FirstBlockCacheConfig(threshold=0.5),
    "exact": lambda: FirstBlockCacheConfig(threshold=0.0),
}
# By default it looks for names that end in "attn".
TAYLOR_LAYERS = [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"]
TAYLOR = {
    "config": lambda: TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=2, cache_identifiers=TAYLOR_LAYERS
    ),
    "exact": lambda: TaylorSeerCacheConfig(disable_cache_before_step=100, cache_identifiers=TAYLOR_LAYERS),
}
TAYLOR_LITE = {
    "config": lambda: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, use_lite_mode=True),
    "exact": lambda: TaylorSeerCacheConfig(disable_cache_before_step=100, use_lite_mode=True),
}
MAG = {
    "config": lambda: MagCacheConfig(threshold=0.5, num_inference_steps=6, mag_ratios=[1.0] * 6),
    "exact": lambda: MagCacheConfig(num_inference_steps=6, retention_ratio=1.0, mag_ratios=[1.0] * 6),
}
PYRAMID = {
    "config": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: 500,
    ),
    "exact": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=1, cross_attention_block_skip_range=1, current_timestep_callback=lambda: 500
    ),
}


@pytest.mark.parametrize(
    "cache",
    [FIRST_BLOCK, TAYLOR, TAYLOR_LITE, MAG, PYRAMID],
    ids=["first_block", "taylor", "taylor_lite", "mag", "pyramid"],
)
def test_cache(model, inputs, run, close, cache):
    expected = denoise(model, inputs, run)
    model.enable_cache(cache["exact"]())
    assert torch.equal(denoise(model, inputs, run), expected)
    model.disable_cache()

    calls = []
    handle = model.transformer_blocks[-1].attn1.to_q.register_forward_hook(lambda *args: calls.append(args))
    assert not model.is_cache_enabled
    model.enable_cache(cache["config"]())
    assert model.is_cache_enabled
    with pytest.raises(ValueError, match="already been enabled"):
        model.enable_cache(cache["config"]())
    cached = denoise(model, inputs, run)
    assert len(calls) < len(expected)
    assert torch.equal(cached[0], expected[0])
    assert not torch.allclose(cached, expected)
    if cache is not PYRAMID:  # which does not distinguish contexts
        close(cached, expected, 0.3)

    model._reset_stateful_cache()
    assert torch.equal(denoise(model, inputs, run), cached)
    model.disable_cache()
    assert not model.is_cache_enabled
    handle.remove()
    assert torch.equal(denoise(model, inputs, run), expected)


def test_first_block_cache_keeps_contexts_apart(model, inputs, run):
    """A call in a context without a cache is computed in full, whatever other contexts have cached."""
    expected = run(model, inputs)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with model.cache_context("uncond"):
        run(model, inputs | {"encoder_hidden_states": torch.zeros_like(inputs["encoder_hidden_states"])})
    with model.cache_context("cond"):
        assert torch.equal(run(model, inputs), expected)


def test_faster_cache(model, inputs, run):
    time = 1.0
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0.0, 0.9),
        is_guidance_distilled=True,
        tensor_format="BCHW",
        current_timestep_callback=lambda: time,
    )
    expected, calls = run(model, inputs), []
    model.transformer_blocks[-1].attn1.to_q.register_forward_hook(lambda *args: calls.append(args))
    model.enable_cache(config)
    assert torch.equal(run(model, inputs), expected)
    time = 0.5
    for _ in range(5):
        torch.testing.assert_close(run(model, inputs), expected)
    assert len(calls) < 6
    model.disable_cache()
    assert torch.equal(run(model, inputs), expected)


def test_half_precision_is_close(transformer_case, inputs, run, close, tmp_path):
    model = transformer_case.model()
    model.save_pretrained(tmp_path)
    half = AudioXTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.time_proj.weight.dtype == torch.float32
    # The time stays in float32.
    inputs = {name: tensor if name == "timestep" else tensor.bfloat16() for name, tensor in inputs.items()}
    output = run(half, inputs)
    assert output.dtype == torch.bfloat16
    close(output.float(), run(model, {name: tensor.float() for name, tensor in inputs.items()}), 0.05)


def test_time_features_are_float32_under_autocast():
    embed = AudioXFourierEmbedding(64)
    timestep = torch.rand(4)
    with torch.autocast("cpu", torch.bfloat16):
        features = embed(timestep)
    assert torch.equal(features, embed(timestep))
