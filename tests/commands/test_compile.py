"""`--compile`: whose transformers are compiled, and what is said without a compiler."""

import json

import pytest
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.generation.loading import Placement
from audiox_diffusers.serving.limits import Limits
from audiox_diffusers.serving.models import Models

SAMPLING = ["--steps", "1", "--length", "0.5"]


@pytest.fixture
def compiled(monkeypatch):
    """Record the pipelines that are compiled, and compile nothing."""
    found = []
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr(AudioXPipeline, "compile", lambda self: found.append(type(self).__name__))
    return found


def test_commands_compile_their_pipeline(compiled, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--prompt", "rain", *SAMPLING, "-o", "sound.wav"]) == 0
    assert not compiled
    assert main(["generate", "--prompt", "rain", *SAMPLING, "-o", "sound.wav", "--compile"]) == 0
    (tmp_path / "lines.jsonl").write_text(json.dumps({"prompt": "wind"}))
    assert main(["generate", "--batch", "lines.jsonl", *SAMPLING, "-o", "sounds", "--compile"]) == 0
    assert compiled == ["AudioXPipeline"] * 2
    edit = ["edit", "--audio", "sound.wav", "--inpaint", "0.1-0.3", "--steps", "1", "-o", "edited.wav", "--compile"]
    assert main(edit) == 0
    assert len(compiled) == 3


def test_a_server_compiles_the_models_that_it_loads(compiled):
    models = Models(["audiox-tiny"], [], Placement(torch.device("cpu"), compiled=True), Limits())
    models.get("audiox-tiny")
    assert len(compiled) == 1


def test_a_missing_compiler_is_said_before_the_model_is_loaded(monkeypatch, tmp_path, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(AudioXPipeline, "from_pretrained", fail)
    assert main(["generate", "--prompt", "rain", "-o", str(tmp_path / "x.wav"), "--compile"]) != 0
    assert "--compile does not work here: No working C++ compiler found" in capsys.readouterr().err
