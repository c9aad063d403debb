"""Save a pipeline and load it by either class, from a folder and from a Hub."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from loopback_hub import loopback_hub

from audiox_diffusers import AudioXPipeline

COMPONENTS = ("transformer", "conditioner", "vae", "text_encoder", "image_encoder")


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same(loaded, pipe):
    assert type(loaded) is AudioXPipeline
    for name in COMPONENTS:
        expected, actual = pipe.components[name].state_dict(), loaded.components[name].state_dict()
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())
        assert not loaded.components[name].training
    loaded.set_progress_bar_config(disable=True)
    audios = [
        model("rain", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).audios
        for model in (pipe, loaded)
    ]
    assert (audios[0] == audios[1]).all()


@pytest.mark.parametrize("pipeline_class", [AudioXPipeline, DiffusionPipeline])
def test_round_trip(pipe, folder, pipeline_class):
    assert_same(pipeline_class.from_pretrained(folder), pipe)


def test_index_names_diffusers(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "AudioXPipeline"
    assert index["transformer"] == ["diffusers", "AudioXTransformer2DModel"]
    libraries = {name: value[0] for name, value in index.items() if isinstance(value, list)}
    assert libraries.pop("sync_encoder") is None  # AudioX has no use for it
    assert set(libraries.values()) == {"diffusers", "transformers"}


def test_replaced_component_is_named_too(pipe, tmp_path):
    pipe.transformer = type(pipe.transformer).from_config(pipe.transformer.config)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "AudioXTransformer2DModel"]


def test_variant(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp32")
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.fp32.safetensors").is_file()
    assert_same(DiffusionPipeline.from_pretrained(tmp_path, variant="fp32"), pipe)


def test_shards(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    assert_same(DiffusionPipeline.from_pretrained(tmp_path), pipe)


def test_dtype(folder):
    loaded = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert {loaded.components[name].dtype for name in COMPONENTS} == {torch.bfloat16}
    assert loaded.vae.decoder.conv1.weight.dtype == torch.float32
    loaded = DiffusionPipeline.from_pretrained(folder, dtype={"transformer": torch.float16, "default": torch.float32})
    assert loaded.transformer.dtype == torch.float16 and loaded.conditioner.dtype == torch.float32


def test_device_map(pipe, folder):
    assert_same(DiffusionPipeline.from_pretrained(folder, device_map="cpu"), pipe)


def test_without_optional_components(pipe, folder, golden):
    loaded = DiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, image_encoder=None)
    assert loaded.text_encoder is None
    embeds = {"prompt_embeds": golden["cond.text.tokens"], "num_inference_steps": 1}
    audios = [model(**embeds, generator=torch.Generator().manual_seed(0)).audios for model in (pipe, loaded)]
    assert (audios[0] == audios[1]).all()
    loaded.save_pretrained(folder.parent / "partial")
    assert not (folder.parent / "partial" / "text_encoder").exists()


def test_components_make_another_pipeline(pipe):
    assert_same(AudioXPipeline(**pipe.components), pipe)
    assert_same(AudioXPipeline.from_pipe(pipe), pipe)


def run_python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


LOAD_WITHOUT_IMPORT = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({source!r}, custom_pipeline="pipeline", trust_remote_code=True)
print(type(pipe).__name__, type(pipe.transformer).__name__)
"""

LOAD_WITH_IMPORT = """
import audiox_diffusers
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({source!r})
print(type(pipe).__name__, type(pipe.transformer).__name__)
"""


@pytest.mark.slow
def test_without_the_import(folder, tmp_path):
    out = run_python(LOAD_WITHOUT_IMPORT.format(source=str(folder)), HF_HOME=str(tmp_path / "hub"))
    assert out.split() == ["AudioXPipeline", "AudioXTransformer2DModel"]


@pytest.fixture
def hub(folder):
    """A Hub on this machine that holds the folder as `someone/audiox`; its environment."""
    with loopback_hub({"someone/audiox": folder}) as hub:
        yield hub.environment


@pytest.mark.slow
@pytest.mark.parametrize("code", [LOAD_WITH_IMPORT, LOAD_WITHOUT_IMPORT])
def test_from_the_hub(hub, tmp_path, code):
    out = run_python(code.format(source="someone/audiox"), HF_HOME=str(tmp_path / "hub"), **hub)
    assert out.split() == ["AudioXPipeline", "AudioXTransformer2DModel"]
