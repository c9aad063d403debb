"""No command and no loader runs code that lies beside a model, or asks whether to run it."""

import json
import shutil

import pytest

from audiox_diffusers import load_original_checkpoint
from audiox_diffusers.cli import main
from audiox_diffusers.embedded import EMBEDDED_FOLDERS


@pytest.fixture(autouse=True)
def answer(monkeypatch, tmp_path):
    """Someone types y, as `yes |` does."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "RAN").exists()


def make_hostile(tokenizer):
    """Let a tokenizer's folder ask for a class of its own."""
    (tokenizer / "evil.py").write_text("open('RAN', 'w')\n\n\nclass Evil:\n    pass\n")
    path = tokenizer / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(config))
    return tokenizer


@pytest.fixture
def tokenizer_folder(tmp_path):
    return make_hostile(shutil.copytree(EMBEDDED_FOLDERS["audiox-tiny"] / "tokenizer", tmp_path / "tokenizer"))


def test_load_original_checkpoint(tokenizer_folder, fixtures_path):
    folder = fixtures_path / "audiox"
    with pytest.raises(ValueError, match="`tokenizer`"):
        load_original_checkpoint(folder, text_encoder=folder / "text_encoder", tokenizer=tokenizer_folder)


def test_tokenizer_beside_the_text_encoder(tokenizer_folder, fixtures_path, tmp_path):
    shutil.copytree(fixtures_path / "audiox" / "text_encoder", tokenizer_folder, dirs_exist_ok=True)
    pipe = load_original_checkpoint(fixtures_path / "audiox", text_encoder=tokenizer_folder)
    assert type(pipe.tokenizer).__name__ != "Evil"


def test_convert(tokenizer_folder, fixtures_path, capsys):
    folder = fixtures_path / "audiox"
    encoder = ["--text-encoder", str(folder / "text_encoder")]
    assert main(["convert", str(folder), "out", *encoder, "--tokenizer", str(tokenizer_folder)]) == 2
    assert "`tokenizer`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_model_whose_index_names_an_auto_class(tmp_path, capsys, command):
    model = shutil.copytree(EMBEDDED_FOLDERS["audiox-tiny"], tmp_path / "model")
    make_hostile(model / "tokenizer")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "AutoTokenizer"]}))
    arguments = {
        "generate": ["--prompt", "rain"],
        "edit": ["--audio", "sound.wav", "--extend", "1"],
    }
    if command == "edit":
        assert main(["generate", "--prompt", "rain", "--steps", "1", "--length", "1", "-o", "sound.wav"]) == 0
    assert main([command, "--model", str(model), *arguments[command], "--steps", "1", "-o", "x.wav"]) == 2
    assert "audiox: error: --model" in capsys.readouterr().err.splitlines()[-1]
