import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from audiox_diffusers import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from audiox_diffusers.loaders import component_configs, convert_state_dict, fill_component, fold_weight_norm
from audiox_diffusers.loaders.original_checkpoint import read_image_encoder_config


def test_released_checkpoint_at_full_size(manifest):
    """Every tensor of the file lands in one place, and every parameter of the components is filled."""
    config, state_dict = manifest
    configs = component_configs(config, state_dict)
    converted = convert_state_dict(state_dict)
    with torch.device("meta"):
        components = {
            "transformer": AudioXTransformer2DModel(**configs["transformer"]),
            "conditioner": AudioXConditioner(**configs["conditioner"]),
            "vae": AudioXAutoencoderOobleck(**configs["vae"]),
            "image_encoder": CLIPVisionModelWithProjection(read_image_encoder_config(None)),
        }
    parameters = {}
    for name, empty in components.items():
        tensors = fold_weight_norm(converted[name]) if name == "vae" else converted[name]
        model = fill_component(name, empty, tensors)
        assert dict(model.named_parameters()).keys() == tensors.keys()
        parameters[name] = sum(parameter.numel() for parameter in model.parameters())

    # Published sizes: the DiT has 1.057 B parameters, the VAE 156 M, CLIP ViT-B/32's vision tower 88 M.
    assert 1.05e9 < parameters["transformer"] < 1.06e9
    assert 1.55e8 < parameters["vae"] < 1.57e8
    assert 8.7e7 < parameters["image_encoder"] < 8.9e7
    assert configs["transformer"]["sample_size"] == 236
    assert configs["conditioner"]["audio_prompt_samples"] == 441000


def test_tensors_add_up(manifest):
    """No number of the file is lost or used twice, but for what is listed as unused and the gains of weight norm."""
    _, state_dict = manifest
    unused = (".beta", ".inv_freq", "to_global_embed.0.weight", "to_global_embed.2.weight")
    used = sum(
        tensor.numel()
        for key, tensor in state_dict.items()
        if not (key.startswith("model.") and key.endswith(unused)) and ".audio_prompt.pretransform." not in key
    )
    converted = convert_state_dict(state_dict)
    assert sum(tensor.numel() for tensors in converted.values() for tensor in tensors.values()) == used


@pytest.mark.parametrize(
    "key", ["model.model.transformer.layers.0.adaln.weight", "first_stage_model.conv.weight", "pretransform.model.x"]
)
def test_left_over_tensor_is_named(manifest, key):
    _, state_dict = manifest
    with pytest.raises(ValueError, match=key):
        convert_state_dict({**state_dict, key: torch.empty(1)})


@pytest.mark.parametrize(
    ("component", "key", "named"),
    [
        ("transformer", "model.model.transformer.layers.3.self_attn.to_qkv.weight", None),
        ("transformer", "model.model.preprocess_conv.weight", None),
        ("conditioner", "conditioner.conditioners.video_prompt.Temp_transformer.layers.2.1.fn.net.3.bias", None),
        (
            "vae",
            "pretransform.model.encoder.layers.1.layers.0.layers.0.alpha",
            "encoder.block.0.res_unit1.snake1.alpha",
        ),
        ("vae", "pretransform.model.decoder.layers.0.weight_g", "decoder.conv1.weight_v"),
    ],
)
def test_missing_tensor_is_named(manifest, component, key, named):
    config, state_dict = manifest
    classes = {
        "transformer": AudioXTransformer2DModel,
        "conditioner": AudioXConditioner,
        "vae": AudioXAutoencoderOobleck,
    }
    with torch.device("meta"):
        empty = classes[component](**component_configs(config, state_dict)[component])
    with pytest.raises(ValueError, match=named or f"{key} is missing"):
        partial = convert_state_dict({name: tensor for name, tensor in state_dict.items() if name != key})[component]
        fill_component(component, empty, fold_weight_norm(partial))


def test_folded_weight_norm():
    conv = torch.nn.utils.weight_norm(torch.nn.Conv1d(3, 5, 7))
    conv.weight_g.data.uniform_(0.5, 2)
    expected = conv(torch.ones(1, 3, 7))
    folded = fold_weight_norm(conv.state_dict())
    assert folded.keys() == {"bias", "weight"}
    actual = torch.nn.functional.conv1d(torch.ones(1, 3, 7), folded["weight"], folded["bias"])
    torch.testing.assert_close(actual, expected)


def test_constants_that_differ_are_refused(fixtures_path):
    state_dict = torch.load(fixtures_path / "audiox" / "model.ckpt", weights_only=True)["state_dict"]
    for key in (
        "model.model.transformer.layers.1.ff_norm.beta",
        "model.model.transformer.rotary_pos_emb.inv_freq",
        "conditioner.conditioners.audio_prompt.pretransform.model.decoder.layers.0.bias",
    ):
        with pytest.raises(ValueError, match=key):
            convert_state_dict({**state_dict, key: state_dict[key] + 1})
