import pytest
import torch
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from peft import LoraConfig

from audiox_diffusers import AudioXMMTransformer2DModel, AudioXTransformer2DModel

# Layers of each transformer that depend on the context alone, and the number of calls in a forward pass.
PROJECTIONS = {
    AudioXTransformer2DModel: {"linear_1": 1, "linear_2": 1, "attn2.to_k": 3, "attn2.to_v": 3},
    AudioXMMTransformer2DModel: {"context_embed": 1, "context_to_positions": 1, "modulation": 3},
}


@pytest.fixture(params=["transformer", "mm-transformer"])
def any_case(request, cases):
    return cases[request.param]


@pytest.fixture
def steps(any_case):
    """Latents and times of three steps, with the context of the case."""
    generator = torch.Generator().manual_seed(3)
    shape = any_case.inputs()["hidden_states"].shape
    return [
        {"hidden_states": torch.randn(shape, generator=generator), "timestep": torch.full(shape[:1], time)}
        for time in (0.9, 0.5, 0.1)
    ]


def count_calls(model) -> dict[str, list[int]]:
    """Record the number of rows in each call of the projections, by name."""
    calls: dict[str, list[int]] = {name: [] for name in PROJECTIONS[type(model)]}
    for path, module in model.named_modules():
        for name in calls:
            if path.endswith(name) and "time_embed" not in path:
                module.register_forward_hook(
                    lambda module, args, output, name=name: calls[name].append(args[0].shape[0])
                )
    return calls


@torch.no_grad()
def test_the_context_is_projected_once(any_case, steps):
    model, tensor = any_case.model(), any_case.inputs()["encoder_hidden_states"]
    expected = [model(**step, encoder_hidden_states=tensor).sample for step in steps]
    calls, context = count_calls(model), model.project_context(tensor)
    found = [model(**step, encoder_hidden_states=context).sample for step in steps]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert {name: len(rows) for name, rows in calls.items()} == PROJECTIONS[any_case.model_class]


@torch.no_grad()
def test_fused_projections_are_cached_too(transformer_case):
    model, inputs = transformer_case.model(), transformer_case.inputs()
    expected = model(**inputs).sample
    model.fuse_qkv_projections()
    calls = []
    for block in model.transformer_blocks:
        block.attn2.to_kv.register_forward_hook(lambda module, args, output: calls.append(module))
    inputs["encoder_hidden_states"] = model.project_context(inputs["encoder_hidden_states"])
    for _ in range(2):
        torch.testing.assert_close(model(**inputs).sample, expected, rtol=0, atol=1e-5)
    assert len(calls) == len(model.transformer_blocks)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_a_tensor(any_case, steps, checkpointing):
    model, tensor = any_case.model().train(), any_case.inputs()["encoder_hidden_states"]
    if checkpointing:
        model.enable_gradient_checkpointing()
    gradients = []
    for project in (lambda tensor: tensor, model.project_context):
        model.zero_grad()
        context = project(tensor)
        sum(model(**step, encoder_hidden_states=context).sample.square().sum() for step in steps[:2]).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


@torch.no_grad()
def test_the_null_context_skips_cross_attention(transformer_case):
    model, inputs = transformer_case.model(), transformer_case.inputs()
    tensor = inputs.pop("encoder_hidden_states")
    assert model.null_context_vanishes
    inputs = {name: torch.cat((value, value)) for name, value in inputs.items()}
    expected = model(**inputs, encoder_hidden_states=torch.cat((torch.zeros_like(tensor), tensor))).sample
    rows = []
    for block in model.transformer_blocks:
        block.attn2.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    found = model(**inputs, encoder_hidden_states=model.project_context(tensor)).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert rows == [2, 2, 2]


@torch.no_grad()
def test_fewer_rows_are_refused_if_the_null_context_has_an_effect(any_case):
    model, inputs = any_case.model(), any_case.inputs()
    tensor = inputs.pop("encoder_hidden_states")
    with pytest.raises(ValueError, match="must have one row per sample of `hidden_states`, 2, got 1"):
        model(**inputs, encoder_hidden_states=tensor[:1])
    if any_case.model_class is AudioXTransformer2DModel:
        model.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=["attn2.to_v"], lora_bias=True))
    assert not model.null_context_vanishes
    with pytest.raises(ValueError, match="must have one row per sample of `hidden_states`, 2, got 1"):
        model(**inputs, encoder_hidden_states=model.project_context(tensor[:1]))


@torch.no_grad()
def test_compiled_blocks_take_a_context(any_case, steps):
    torch._dynamo.reset()
    model, tensor = any_case.model(), any_case.inputs()["encoder_hidden_states"]
    expected = [model(**step, encoder_hidden_states=tensor).sample for step in steps]
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    context = model.project_context(tensor)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        found = [model(**step, encoder_hidden_states=context).sample for step in steps]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def run_steps(model, steps, context, **kwargs) -> torch.Tensor:
    """Return the output of each step, in one cache context."""
    outputs = []
    with torch.no_grad():
        for step in steps:
            with model.cache_context("cond_uncond"):
                outputs.append(model(**step, encoder_hidden_states=context, **kwargs).sample)
    return torch.stack(outputs)


def offload_each_layer(model):
    """Keep weights on the meta device except while a layer runs, like sequential offloading."""
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def offload_groups(model, **kwargs):
    model.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), **kwargs)


WAYS = {
    "offload_each_layer": offload_each_layer,
    "offload_blocks": lambda model: offload_groups(model, offload_type="block_level", num_blocks_per_group=1),
    "offload_leaves": lambda model: offload_groups(model, offload_type="leaf_level"),
    "layerwise_casting": lambda model: model.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "first_block_cache": lambda model: model.enable_cache(FirstBlockCacheConfig(threshold=1e9)),
    "taylor_cache": lambda model: model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=1, cache_identifiers=[r"transformer_blocks\.\d+\.attn\d"]
        )
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_context_gives_the_output_of_a_tensor(any_case, steps, way):
    tensor, outputs = any_case.inputs()["encoder_hidden_states"], []
    for projected in (False, True):
        model = any_case.model()
        WAYS[way](model)
        with torch.no_grad():
            context = model.project_context(tensor) if projected else tensor
        outputs.append(run_steps(model, steps, context))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_weights_on_a_disk_are_read_for_the_context(any_case, steps, kind, tmp_path):
    """While they are on the disk, the tensors of the weights hold anything."""
    tensor = any_case.inputs()["encoder_hidden_states"]
    expected = run_steps(any_case.model(), steps, tensor)
    model = any_case.model()
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    offload_groups(model, offload_type=kind, offload_to_disk_path=str(tmp_path), **blocks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        context = model.project_context(tensor)
    torch.testing.assert_close(run_steps(model, steps, context), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_context_uses_the_scale_of_adapters(any_case, steps, scale):
    model, tensor = any_case.model(), any_case.inputs()["encoder_hidden_states"]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model.add_adapter(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    kwargs = {"attention_kwargs": {"scale": scale}}
    expected = run_steps(model, steps, tensor, **kwargs)
    with torch.no_grad():
        context = model.project_context(tensor, **kwargs)
    torch.testing.assert_close(run_steps(model, steps, context, **kwargs), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_transformer_compiled_as_a_whole_takes_a_context(any_case, steps):
    torch._dynamo.reset()
    model, tensor = any_case.model(), any_case.inputs()["encoder_hidden_states"]
    expected = run_steps(model, steps, tensor)
    compiled, context = torch.compile(model, fullgraph=True, backend="aot_eager"), model.project_context(tensor)
    found = torch.stack([compiled(**step, encoder_hidden_states=context, return_dict=False)[0] for step in steps])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
