"""The model that comes with the package, and the name that it is loaded by."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import audiox_diffusers.embedded
from audiox_diffusers import AudioXInpaintPipeline, AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.loaders import on_hub, public_name
from audiox_diffusers.pipelines.release_cache import find_model

FOLDER = Path(audiox_diffusers.embedded.__file__).parent / "audiox-tiny"
COMPONENTS = ("transformer", "conditioner", "vae", "text_encoder", "image_encoder")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """The Hub would be asked, but an attempt to reach it fails the test; nothing is cached, and the folder is empty."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def stored() -> dict[str, dict[str, torch.Tensor]]:
    files = {path.parent.name: load_file(path) for path in FOLDER.glob("*/*.safetensors")}
    assert set(files) == set(COMPONENTS)
    return files


# The name


def test_the_name_stands_for_the_folder_in_the_package():
    assert find_model("audiox-tiny") == str(FOLDER)


def test_the_name_may_be_a_path():
    assert find_model(Path("audiox-tiny")) == str(FOLDER)
    assert find_model(Path("some") / "folder") == "some/folder"


@pytest.mark.parametrize("name", ["audiox-tinny", "audiox-large", "someone/audiox-tiny", "./audiox-tiny", ""])
def test_other_names_stay_as_they_are(name):
    assert find_model(name) == name


def test_a_folder_of_the_name_goes_first_and_a_file_does_not():
    here = Path("audiox-tiny")
    here.write_text("notes")
    assert find_model("audiox-tiny") == str(FOLDER)
    here.unlink()
    here.mkdir()
    assert find_model("audiox-tiny") == "audiox-tiny"


def test_it_is_none_of_the_hub():
    assert not on_hub("audiox-tiny") and on_hub("audiox-tinny")
    assert public_name("audiox-tiny") == public_name(str(FOLDER)) == "audiox-tiny"


def test_a_typo_is_looked_up_on_the_hub():
    with pytest.raises(AssertionError, match="the network was asked"):
        AudioXPipeline.from_pretrained("audiox-tinny")


def test_a_typo_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["generate", "--model", "audiox-tinny", "--prompt", "rain", "-o", "x.wav"]) == 2
    assert capsys.readouterr().err.startswith("audiox: error: --model audiox-tinny: no such folder, and no model")


def test_a_folder_of_the_name_is_loaded(pipe):
    pipe.save_pretrained("audiox-tiny")
    loaded = AudioXPipeline.from_pretrained("audiox-tiny")
    weights = pipe.transformer.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.transformer.state_dict().items())


# The model


@pytest.mark.parametrize("pipeline_class", [AudioXPipeline, AudioXInpaintPipeline])
def test_it_is_loaded_in_float32_as_it_is_stored(pipeline_class):
    loaded = pipeline_class.from_pretrained("audiox-tiny")
    assert type(loaded) is pipeline_class
    for name, tensors in stored().items():
        component = getattr(loaded, name)
        assert not component.training
        assert {parameter.dtype for parameter in component.parameters()} == {torch.float32}
        weights = component.state_dict()
        for key, tensor in tensors.items():
            assert tensor.dtype == torch.float16 and torch.equal(weights[key], tensor.float())


def test_it_is_a_folder_for_diffusers_too():
    loaded = DiffusionPipeline.from_pretrained(FOLDER)
    assert type(loaded) is AudioXPipeline
    assert {getattr(loaded, name).dtype for name in COMPONENTS} == {torch.float32}


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_it_is_loaded_in_another_dtype_without_some_components(argument):
    left_out = {"image_encoder": None, "text_encoder": None, "tokenizer": None}
    loaded = AudioXPipeline.from_pretrained("audiox-tiny", **{argument: torch.bfloat16}, **left_out)
    assert loaded.image_encoder is loaded.text_encoder is loaded.tokenizer is None
    assert {getattr(loaded, name).dtype for name in ("transformer", "conditioner", "vae")} == {torch.bfloat16}


def test_half_precision_comes_back_to_the_bit(tmp_path):
    AudioXPipeline.from_pretrained("audiox-tiny").to(torch.float16).save_pretrained(tmp_path / "saved")
    for name, tensors in stored().items():
        (path,) = (tmp_path / "saved" / name).glob("*.safetensors")
        saved = load_file(path)
        assert saved.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert saved[key].dtype == torch.float16 and torch.equal(saved[key], tensor)


def test_its_weights_are_finite():
    assert all(tensor.isfinite().all() for tensors in stored().values() for tensor in tensors.values())


def test_it_makes_a_window_of_sound():
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    pipe.set_progress_bar_config(disable=True)
    (sound,) = pipe("rain", generator=[torch.Generator().manual_seed(0)]).audios
    assert sound.shape == (1, 64000) and pipe.vae.config.sampling_rate == 16000
    assert np.isfinite(sound).all() and sound.std() > 1e-3


def test_its_card_and_configs():
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-audio" and card.data.license
    for path in FOLDER.rglob("*.json"):
        # Where it was on the machine that it was made on.
        assert "_name_or_path" not in json.loads(path.read_text(encoding="utf-8"))


# The student


def test_the_student_has_few_steps_and_the_parts_of_its_teacher(tmp_path):
    student, teacher = (DiffusionPipeline.from_pretrained(name) for name in ("audiox-tiny-turbo", "audiox-tiny"))
    assert type(student) is AudioXPipeline
    assert student.config.default_num_inference_steps <= 4 and student.config.default_guidance_scale == 1.0
    for name in COMPONENTS:
        weights, others = (getattr(pipe, name).state_dict() for pipe in (student, teacher))
        assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items()) == (name != "transformer")
    (folder,) = (tmp_path / "hub" / "models--audiox_diffusers--audiox-tiny-turbo" / "snapshots").iterdir()
    assert find_model("audiox-tiny-turbo") == str(folder)
    assert find_model("audiox-tiny-turbo", cache_dir=tmp_path / "other") != str(folder)


def test_the_student_makes_a_window_of_sound_and_edits():
    student = AudioXInpaintPipeline.from_pretrained("audiox-tiny-turbo")
    student.set_progress_bar_config(disable=True)
    sound = 0.1 * torch.randn(1, 64000, generator=torch.Generator().manual_seed(1))
    (edited,) = student((sound, 16000), "rain", inpaint_spans=[(1.0, 2.0)], generator=torch.Generator()).audios
    assert edited.shape == (1, 64000) and np.isfinite(edited).all()
    assert np.array_equal(edited[:, :15000], sound[:, :15000].numpy())


def test_the_student_is_in_no_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(OSError, match="audiox-tiny-turbo: cannot be written to the cache .* Set HF_HOME"):
        AudioXPipeline.from_pretrained("audiox-tiny-turbo")


def test_the_student_on_the_command_line(capsys):
    assert main(["generate", "--model", "audiox-tiny-turbo", "--prompt", "a bell, then a zebra", "-o", "x.wav"]) == 0
    assert "audiox-tiny-turbo does not know 'zebra'" in capsys.readouterr().err
    assert main(["convert", "audiox-tiny-turbo", "converted"]) == 2
    assert "is a diffusers model already" in capsys.readouterr().err
