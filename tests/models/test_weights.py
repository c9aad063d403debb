"""Checkpoints are complete: what is refused when a model is loaded, and what is saved when it has adapters."""

import copy
import json

import pytest
import torch
from diffusers import AutoModel
from helpers import assert_equal
from peft import LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file

FILE = "diffusion_pytorch_model.safetensors"
# A config value for each model that asks for fewer weights, and one that asks for more.
OTHER_SIZES = {
    "transformer": ({"num_layers": 1}, {"num_layers": 4}),
    "mm-transformer": ({"num_layers": 2}, {"num_layers": 5}),
    "conditioner": ({"num_temporal_layers": 1}, {"num_sync_tokens": 9}),
    "fused-conditioner": ({"num_fusion_layers": 1}, {"num_fusion_layers": 3}),
    "mel-conditioner": ({"num_temporal_layers": 0}, {"num_temporal_layers": 3}),
    "synchformer": ({"num_hidden_layers": 1}, {"num_hidden_layers": 3}),
    "autoencoder": ({"use_weight_norm": True}, {"use_weight_norm": True}),
}


def change_config(folder, values: dict) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", OTHER_SIZES)
@pytest.mark.parametrize("loader", ["own class", "AutoModel"])
def test_config_of_another_size(cases, tmp_path, name, loader):
    case = cases[name]
    loader = AutoModel if loader == "AutoModel" else case.model_class
    case.model().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for values, message in zip(OTHER_SIZES[name], ("The model has no place for `", "The checkpoint lacks `")):
        (tmp_path / "config.json").write_text(config)
        change_config(tmp_path, values)
        with pytest.raises(
            ValueError, match=f"config and the weights of {case.model_class.__name__} in .* do not match.*{message}"
        ):
            loader.from_pretrained(tmp_path)


def test_missing_and_unexpected_weights(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / FILE)
    first = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != first}, tmp_path / FILE)
    with pytest.raises(ValueError, match=f"The checkpoint lacks `{first}`."):
        case.model_class.from_pretrained(tmp_path)
    save_file(weights | {f"extra.{i}": torch.zeros(2) for i in range(5)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="no place for `extra.0`, `extra.1`, `extra.2` and 2 more."):
        case.model_class.from_pretrained(tmp_path)


# Saving with adapters

ADAPTED = ("transformer", "mm-transformer", "conditioner")


@pytest.fixture(params=ADAPTED)
def adapted(request, cases):
    """A model, and a copy with the adapters `a` and `b`, of which `b` is active."""
    model = cases[request.param].model()
    with_adapters = copy.deepcopy(model)
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        targets = ["proj"] if request.param == "conditioner" else ["to_q", "proj_in", "preprocess_conv"]
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=name == "b")
        with_adapters.add_adapter(config, name)
    return model, with_adapters


def test_save_with_adapters(adapted, run, tmp_path, caplog):
    model, with_adapters = adapted
    before = {key: value.clone() for key, value in with_adapters.state_dict().items()}
    model.save_pretrained(tmp_path / "plain")
    with_adapters.save_pretrained(tmp_path / "adapted")
    assert (tmp_path / "adapted" / FILE).read_bytes() == (tmp_path / "plain" / FILE).read_bytes()
    assert_equal(type(model).from_pretrained(tmp_path / "adapted").state_dict(), model.state_dict())
    assert_equal(dict(with_adapters.state_dict()), before)


@pytest.mark.parametrize("names", [["a"], ["b"], ["a", "b"]], ids="+".join)
def test_save_with_fused_adapters(adapted, tmp_path, names):
    """A fused adapter is part of the weights. One that is not fused is left out."""
    _, with_adapters = adapted
    with_adapters.fuse_lora(adapter_names=names)
    with_adapters.save_pretrained(tmp_path)
    with_adapters.unload_lora()
    assert_equal(type(with_adapters).from_pretrained(tmp_path).state_dict(), with_adapters.state_dict())


def test_save_after_unloading_or_deleting(adapted, tmp_path):
    model, with_adapters = adapted
    with_adapters.delete_adapters(["a", "b"])
    with_adapters.save_pretrained(tmp_path / "deleted")
    with_adapters.unload_lora()
    with_adapters.save_pretrained(tmp_path / "unloaded")
    for name in ("deleted", "unloaded"):
        assert_equal(load_file(tmp_path / name / FILE), dict(model.state_dict()))


def test_save_disabled_adapters(adapted, tmp_path):
    model, with_adapters = adapted
    with_adapters.disable_lora()
    with_adapters.save_pretrained(tmp_path, max_shard_size="5KB", variant="fp16")
    assert_equal(type(model).from_pretrained(tmp_path, variant="fp16").state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=2, target_modules=["to_q"]),
        LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["proj_out"]),
        LoraConfig(r=2, target_modules=["to_q"], lora_bias=True),
    ],
    ids=["LoHa", "modules_to_save", "bias"],
)
def test_save_with_other_kinds_of_adapters(transformer_case, tmp_path, config):
    model = transformer_case.model()
    with_adapters = copy.deepcopy(model)
    with_adapters.add_adapter(config)
    with_adapters.save_pretrained(tmp_path)
    assert_equal(load_file(tmp_path / FILE), dict(model.state_dict()))
