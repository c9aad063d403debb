"""Adapters in some blocks only, and adapters that start from another one."""

import json

import pytest
import torch
from helpers import assert_equal, refused
from safetensors import safe_open
from safetensors.torch import load_file

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.training import LoraTraining, parse_args
from audiox_diffusers.training.methods.lora import FILE

NEEDED = ["--pretrained_model_name_or_path", "m", "--dataset", "d", "--output_dir", "out", "--max_train_steps", "1"]


def layers(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / FILE)


def settings(folder) -> dict:
    with safe_open(folder / FILE, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


@pytest.mark.parametrize(
    ("blocks", "numbers"), [("8-23", range(8, 24)), ("3", [3]), ("0-1, 4,2", [0, 1, 2, 4]), ("5,5-6", [5, 6])]
)
def test_ranges_of_blocks(blocks, numbers):
    assert parse_args([*NEEDED, "--target_blocks", blocks], LoraTraining).blocks() == list(numbers)


@pytest.mark.parametrize("blocks", ["", "8-", "-3", "5-2", "a", "1,,2", "1.5", "1e3", "99999", "³"])
def test_bad_ranges_of_blocks(blocks):
    with refused("--target_blocks must be numbers and ranges such as 8-23 or 0-3,20-23, got", repr(blocks)):
        parse_args([*NEEDED, f"--target_blocks={blocks}"], LoraTraining)


def test_layers_lie_in_the_blocks(train_lora, small_model, tmp_path):
    train_lora("out", 1, "--target_blocks", "1", "--rank", 2)
    found = layers(tmp_path / "out")
    assert found and all(name.startswith("transformer.transformer_blocks.1.") for name in found)
    assert "- blocks: 1\n" in (tmp_path / "out" / "README.md").read_text()
    AudioXPipeline.from_pretrained(small_model).load_lora_weights(tmp_path / "out")


def test_blocks_that_the_model_does_not_have(train_lora):
    with refused("--target_blocks must be in 0..1, the blocks of the transformer, got 2"):
        train_lora("out", 1, "--target_blocks", "0-2")
    with refused("--target_modules proj_in: the blocks of --target_blocks have no such module, but ff.net.2, "):
        train_lora("out", 1, "--target_blocks", "0", "--target_modules", "proj_in")


def test_start_from_an_adapter(train_lora, small_model, tmp_path):
    """Training goes on from its layers, with its settings, and resumes exactly."""
    train_lora("first", 2, "--rank", 3, "--lora_alpha", 6, "--target_blocks", "0", "--train_conditioner")
    start = ["--init_adapter", tmp_path / "first", "--train_conditioner"]
    train_lora("still", 1, *start, "--learning_rate", 1e-12)
    # A step of AdamW changes a weight by up to the learning rate.
    first, still = layers(tmp_path / "first"), layers(tmp_path / "still")
    assert first.keys() == still.keys()
    assert all(torch.allclose(first[name], still[name], rtol=0, atol=1e-9) for name in first)
    assert any(name.startswith("conditioner.") for name in first)
    for key in ("transformer.r", "transformer.lora_alpha", "transformer.layers_to_transform", "conditioner.r"):
        assert settings(tmp_path / "first")[key] == settings(tmp_path / "still")[key]

    losses = train_lora("second", 3, *start, "--checkpointing_steps", 1)
    exported = layers(tmp_path / "second")
    assert any(not torch.equal(exported[name], first[name]) for name in first)
    assert train_lora("second", 3, *start, "--resume_from_checkpoint", "checkpoint-2") == losses
    assert_equal(layers(tmp_path / "second"), exported)


def test_adapters_that_cannot_be_continued(train_lora, tmp_path):
    train_lora("first", 1, "--rank", 2, "--train_conditioner")
    with refused("--init_adapter", "first has layers in the conditioner; add --train_conditioner"):
        train_lora("out", 1, "--init_adapter", tmp_path / "first")
    (tmp_path / "empty").mkdir()
    with refused(f"--init_adapter {tmp_path / 'empty'}: "):
        train_lora("out", 1, "--init_adapter", tmp_path / "empty")
    (tmp_path / "first" / FILE).write_bytes(b"not an adapter")
    with refused(f"--init_adapter {tmp_path / 'first'}: "):
        train_lora("out", 1, "--init_adapter", tmp_path / "first")
    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--rank", "8"),
        ("--lora_alpha", "2"),
        ("--target_blocks", "1"),
        ("--use_dora",),
        ("--init_lora_weights", "pissa"),
    ],
)
def test_settings_of_the_adapter_it_starts_from(option):
    with refused(f"{option[0]} is that of --init_adapter; leave it out"):
        parse_args([*NEEDED, "--init_adapter", "first", *option], LoraTraining)
