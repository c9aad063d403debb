import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from audiox_diffusers import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
)
from audiox_diffusers.loaders import component_configs, convert_state_dict, fill_component, fold_weight_norm
from audiox_diffusers.loaders.checkpoint_mapping import (
    convert_synchformer_state_dict,
    convert_vae_state_dict,
    is_mmdit,
)
from audiox_diffusers.loaders.original_config import fit_config, image_encoder_config


def empty_components(config, state_dict):
    configs = component_configs(config, state_dict)
    transformer_class = AudioXMMTransformer2DModel if is_mmdit(state_dict) else AudioXTransformer2DModel
    with torch.device("meta"):
        return configs, {
            "transformer": transformer_class(**configs["transformer"]),
            "conditioner": AudioXConditioner(**configs["conditioner"]),
            "vae": AudioXAutoencoderOobleck(**configs["vae"]),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(**image_encoder_config(convert_state_dict(state_dict)["image_encoder"]))
            ),
        }


# Billions of parameters. Of the published 1.057 B of the DiT and 2.22 B of the MMDiT those are left that are used: the
# latter attends to a single token, without queries and half of the keys and values (24 times 2 * 1536^2). The fusion has
# 61 M, 8 layers of 7.1 M most of it.
SIZES = {
    "audiox": (1.052, 0.032),
    "audiox-maf": (1.052, 0.093),
    "audiox-maf-mmdit": (2.100, 0.093),
    "audiox-turbo": (2.100, 0.093),
}


def test_released_checkpoint_at_full_size(any_manifest):
    """Every tensor of the file lands in one place, and every parameter of the components is filled."""
    name, config, state_dict = any_manifest
    configs, components = empty_components(config, state_dict)
    converted = convert_state_dict(state_dict)
    parameters = {}
    for component, empty in components.items():
        tensors = fold_weight_norm(converted[component]) if component == "vae" else converted[component]
        model = fill_component(component, empty, tensors)
        assert dict(model.named_parameters()).keys() == tensors.keys()
        parameters[component] = sum(parameter.numel() for parameter in model.parameters()) / 1e9

    assert parameters["transformer"] == pytest.approx(SIZES[name][0], abs=1e-3)
    assert parameters["conditioner"] == pytest.approx(SIZES[name][1], abs=1e-3)
    assert parameters["vae"] == pytest.approx(0.156, abs=1e-3)
    assert parameters["image_encoder"] == pytest.approx(0.088, abs=1e-3)
    assert configs["transformer"]["sample_size"] == 236


def test_published_config_fits_its_weights(any_manifest):
    _, config, state_dict = any_manifest
    vae = {
        name.removeprefix("pretransform.model."): each
        for name, each in state_dict.items()
        if name[:12] == "pretransform"
    }
    assert fit_config(config, state_dict, vae) == config
    clip = CLIPVisionConfig(projection_dim=512).to_dict()
    actual = image_encoder_config(convert_state_dict(state_dict)["image_encoder"])
    assert actual == {name: clip[name] for name in actual}


def test_audio_prompts_of_the_releases(any_manifest):
    name, config, state_dict = any_manifest
    conditioner = component_configs(config, state_dict)["conditioner"]
    expected = {
        "audiox": ("audio_autoencoder", 441000),
        "audiox-maf": ("mel_spec", 441000),
        "audiox-maf-mmdit": ("audio_autoencoder_v2", 237 * 2048),
        "audiox-turbo": ("audio_autoencoder_v2", 441000),
    }
    assert (conditioner["audio_type"], conditioner["audio_prompt_samples"]) == expected[name]


def test_tensors_add_up(any_manifest):
    """No number of the file is lost or used twice, but for what is listed as unused."""
    _, _, state_dict = any_manifest
    mmdit = is_mmdit(state_dict)
    unused = (".beta", ".inv_freq", "to_global_embed.0.weight", "to_global_embed.2.weight")
    unused += ("to_cond_embed.0.weight", "to_cond_embed.2.weight", "cross_attn.to_q.weight") if mmdit else ()
    used = sum(
        # Of the keys and values of a single token one half counts.
        tensor.numel() // (2 if mmdit and key.endswith("cross_attn.to_kv.weight") else 1)
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
    ("component", "key", "message"),
    [
        (
            "transformer",
            "model.model.transformer.layers.3.self_attn.to_qkv.weight",
            r"transformer_blocks.3.attn1.to_q.weight is missing; .*to_k.weight is missing",
        ),
        ("transformer", "model.model.preprocess_conv.weight", "preprocess_conv.weight is missing"),
        (
            "conditioner",
            "conditioner.conditioners.video_prompt.Temp_transformer.layers.2.1.fn.net.3.bias",
            r"video_proj.temporal_blocks.2.ff.net.2.bias is missing",
        ),
        (
            "vae",
            "pretransform.model.encoder.layers.1.layers.0.layers.0.alpha",
            "encoder.block.0.res_unit1.snake1.alpha is missing",
        ),
        ("vae", "pretransform.model.decoder.layers.0.weight_g", "decoder.conv1.weight_g of the VAE is missing"),
    ],
)
def test_missing_tensor_is_named(manifest, component, key, message):
    config, state_dict = manifest
    classes = {
        "transformer": AudioXTransformer2DModel,
        "conditioner": AudioXConditioner,
        "vae": AudioXAutoencoderOobleck,
    }
    with torch.device("meta"):
        empty = classes[component](**component_configs(config, state_dict)[component])
    with pytest.raises(ValueError, match=message):
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


def test_file_with_several_vaes(manifest):
    _, state_dict = manifest
    vae = {key.removeprefix("pretransform.model."): value for key, value in state_dict.items() if key[:3] == "pre"}
    twice = {f"{prefix}.{key}": value for prefix in ("autoencoder", "ema") for key, value in vae.items()}
    with pytest.raises(ValueError, match="several VAEs.*autoencoder.*ema"):
        convert_vae_state_dict(twice)
    assert convert_vae_state_dict(vae).keys() == convert_state_dict(state_dict)["vae"].keys()


def test_file_without_a_whole_synchformer(fixtures_path):
    state_dict = load_file(fixtures_path / "synchformer" / "state_dict.safetensors")
    del state_dict["vfeat_extractor.pos_embed"]
    with pytest.raises(ValueError, match="vfeat_extractor.pos_embed missing"):
        convert_synchformer_state_dict(state_dict)
    with pytest.raises(ValueError, match="not a Synchformer checkpoint"):
        convert_synchformer_state_dict({"x": torch.zeros(1)})
