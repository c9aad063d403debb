"""`--device`, `--dtype` and `--precise`: what is chosen by default, and what reproduces a sound."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import seeded

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.generation import loading
from audiox_diffusers.generation.loading import MIXED, Placement, load_pipeline, read_placement
from audiox_diffusers.media import load_audio, read_recipe, save_audio

GENERATE = ["generate", "--prompt", "rain", "--steps", "2", "--length", "0.5"]


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the machine has some devices, and a CPU with bfloat16 or without."""

    def set_up(cuda=False, mps=False, bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(loading, "has_bfloat16", lambda: bfloat16)

    return set_up


@pytest.mark.parametrize(
    ("has", "device", "dtype"),
    [
        ({}, "cpu", torch.float32),
        ({"bfloat16": True}, "cpu", MIXED),
        ({"mps": True, "bfloat16": True}, "mps", torch.float32),
        ({"cuda": True, "mps": True, "bfloat16": True}, "cuda", torch.bfloat16),
    ],
    ids=lambda value: "+".join(value) or "nothing" if isinstance(value, dict) else None,
)
def test_default_device_and_dtype(machine, has, device, dtype):
    machine(**has)
    assert read_placement(Namespace(device=None, dtype=None)) == Placement(torch.device(device), dtype)
    assert read_placement(Namespace(device="cpu", dtype="float16")) == Placement(torch.device("cpu"), torch.float16)


def test_the_bench_is_precise_on_every_cpu(machine):
    machine(bfloat16=True)
    assert read_placement(Namespace(device=None, dtype=None), precise_on_cpu=True).dtype == torch.float32
    assert read_placement(Namespace(device=None, dtype="mixed"), precise_on_cpu=True).dtype == MIXED


def test_precise_sounds_equal_those_of_the_library(tmp_path):
    assert main([*GENERATE, "--precise", "-o", str(tmp_path / "command.wav")]) == 0
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    pipe.set_progress_bar_config(disable=True)
    audio = pipe("rain", num_inference_steps=2, audio_length_in_s=0.5, generator=seeded()).audios[0]
    save_audio(tmp_path / "library.wav", audio, pipe.vae.config.sampling_rate)
    assert torch.equal(load_audio(tmp_path / "command.wav")[0], load_audio(tmp_path / "library.wav")[0])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_file_names_the_precision_that_reproduces_it(machine, monkeypatch, tmp_path, capsys, bfloat16):
    monkeypatch.chdir(tmp_path)
    machine(bfloat16=bfloat16)
    assert main([*GENERATE, "-o", "first.wav"]) == 0
    assert read_recipe("first.wav").dtype == ("mixed" if bfloat16 else "float32")
    capsys.readouterr()
    assert main(["info", "first.wav"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (command,) = [line for line in lines if line.startswith("audiox ")]
    # On a machine with the other default.
    machine(bfloat16=not bfloat16)
    assert main([*command.split()[1:-1], "command.wav"]) == 0
    exec("\n".join(lines[lines.index("import torch") :]), {})
    assert Path("command.wav").read_bytes() == Path("first.wav").read_bytes()
    assert torch.equal(load_audio("first-again.wav")[0], load_audio("first.wav")[0])


def test_mixed_is_another_sound_and_close(tmp_path):
    for dtype in ("mixed", "float32"):
        assert main([*GENERATE, "--dtype", dtype, "-o", str(tmp_path / f"{dtype}.wav")]) == 0
    mixed, precise = (load_audio(tmp_path / f"{dtype}.wav")[0] for dtype in ("mixed", "float32"))
    assert 0 < (mixed - precise).abs().max() < 0.1 * precise.abs().max()


def test_mixed_keeps_all_but_the_transformer_in_float32():
    pipe, _ = load_pipeline("audiox-tiny", Placement(torch.device("cpu"), MIXED))
    assert {name: component.dtype for name, component in pipe.components.items() if hasattr(component, "dtype")} == {
        "transformer": torch.bfloat16,
        **dict.fromkeys(("vae", "text_encoder", "image_encoder", "conditioner"), torch.float32),
    }


def test_precise_and_dtype_exclude_each_other(tmp_path, capsys):
    assert main([*GENERATE, "--precise", "--dtype", "bfloat16", "-o", str(tmp_path / "x.wav")]) == 2
    assert "--dtype: not allowed with argument --precise" in capsys.readouterr().err
