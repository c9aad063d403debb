"""Weights of a pipeline's components that do not match their configs."""

import json

import pytest
import torch
from helpers import assert_equal
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, T5ForConditionalGeneration

from audiox_diffusers import AudioXInpaintPipeline, AudioXPipeline, AudioXTransformer2DModel
from audiox_diffusers.cli import main


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change) -> None:
    (path,) = folder.glob("*.safetensors")
    save_file(change(load_file(path)), path, {"format": "pt"})


FAULTS = {
    "transformer": {"num_layers": 1},
    "conditioner": {"num_temporal_layers": 0},
    "text_encoder": {"num_layers": 1},
    "image_encoder": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("component", FAULTS)
@pytest.mark.parametrize("pipeline_class", [AudioXPipeline, AudioXInpaintPipeline])
def test_config_with_fewer_layers(folder, component, pipeline_class):
    change_config(folder / component, **FAULTS[component])
    with pytest.raises(
        ValueError,
        match=f"weights of .* in .*/{component} do not match. The model has no place for `.*more",
    ) as error:
        pipeline_class.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("component", ["vae", "text_encoder", "image_encoder"])
def test_missing_and_extra_weights(folder, component):
    (path,) = (folder / component).glob("*.safetensors")
    weights = load_file(path)
    lost = sorted(key for key in weights if "layer" in key or "decoder" in key)[0]
    change_weights(folder / component, lambda weights: {key: weights[key] for key in weights if key != lost})
    with pytest.raises(ValueError, match="The checkpoint lacks `"):
        AudioXPipeline.from_pretrained(folder)
    change_weights(folder / component, lambda _: weights | {"encoder.block.9.extra": torch.zeros(2)})
    with pytest.raises(ValueError, match="no place for `encoder.block.9.extra`"):
        AudioXPipeline.from_pretrained(folder)


def test_components_that_are_passed_or_left_out_are_not_checked(pipe, folder):
    change_config(folder / "text_encoder", num_layers=1)
    loaded = AudioXPipeline.from_pretrained(folder, text_encoder=pipe.text_encoder)
    assert loaded.text_encoder is pipe.text_encoder
    assert AudioXPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None).text_encoder is None


def test_variant(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp32")
    loaded = AudioXPipeline.from_pretrained(tmp_path, variant="fp32")
    assert_equal(loaded.text_encoder.state_dict(), pipe.text_encoder.state_dict())
    change_config(tmp_path / "text_encoder", num_layers=1)
    with pytest.raises(ValueError, match="text_encoder do not match"):
        AudioXPipeline.from_pretrained(tmp_path, variant="fp32")


def test_whole_checkpoints_of_t5_and_clip_are_accepted(pipe, folder):
    """The decoder of T5 and the text part of CLIP are no part of the encoders."""
    t5 = T5ForConditionalGeneration(pipe.text_encoder.config)
    t5.shared.load_state_dict(pipe.text_encoder.shared.state_dict())
    t5.encoder.load_state_dict(pipe.text_encoder.encoder.state_dict())
    t5.save_pretrained(folder / "text_encoder")
    vision = pipe.image_encoder.config.to_dict()
    clip = CLIPModel(CLIPConfig(vision_config=vision, projection_dim=pipe.image_encoder.config.projection_dim))
    (path,) = (folder / "image_encoder").glob("*.safetensors")
    others = {key: value for key, value in clip.state_dict().items() if key.startswith(("text_", "logit_scale"))}
    save_file(load_file(path) | others, path, {"format": "pt"})
    (folder / "text_encoder" / "config.json").write_text(pipe.text_encoder.config.to_json_string())
    loaded = AudioXPipeline.from_pretrained(folder)
    assert_equal(loaded.text_encoder.state_dict(), pipe.text_encoder.state_dict())
    assert_equal(loaded.image_encoder.state_dict(), pipe.image_encoder.state_dict())


def test_the_check_leaves_the_model_and_settings_alone(folder, capfd):
    loaded = AudioXPipeline.from_pretrained(folder)
    assert {parameter.device.type for parameter in loaded.text_encoder.parameters()} == {"cpu"}
    assert capfd.readouterr().err.count("Loading weights") <= 2 * 4


def test_command(folder, capsys):
    change_config(folder / "text_encoder", num_layers=1)
    assert main(["generate", "--prompt", "a bell", "--model", str(folder), "--output", str(folder / "bell.wav")]) != 0
    error = capsys.readouterr().err
    assert "text_encoder do not match" in error and not (folder / "bell.wav").exists()


@pytest.mark.parametrize("depth", [1, 3])
def test_single_file(fixtures_path, depth):
    config = json.loads((fixtures_path / "audiox" / "config.json").read_text())
    config["model"]["diffusion"]["config"]["depth"] = depth
    with pytest.raises(ValueError, match="does not fit the weights of the transformer"):
        AudioXTransformer2DModel.from_single_file(str(fixtures_path / "audiox" / "model.ckpt"), original_config=config)
