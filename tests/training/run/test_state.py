"""What a resume reads: files of a stranger run no code, and damaged ones are refused."""

import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers import refused

from audiox_diffusers.training.run.state import check_deepspeed_files, random_states, restore_random_states


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def zipped(path: Path, marker: Path) -> None:
    torch.save({"state": Payload(marker)}, path)


def legacy(path: Path, marker: Path) -> None:
    torch.save({"state": Payload(marker)}, path, _use_new_zipfile_serialization=False)


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"state": Payload(marker)}))


RESUME = ["--resume_from_checkpoint", "latest"]


@pytest.mark.parametrize("write", [zipped, legacy, pickled])
def test_full_training_runs_no_code(train, tmp_path, write):
    train("out", 1, "--use_ema")
    checkpoint = tmp_path / "out" / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {"training.json", "data-0.json", "model.safetensors", "optimizer.bin", "random-0.bin", "ema.bin"}
    for name in sorted(names) + ["custom_checkpoint_0.pkl", "custom_checkpoint_7.pkl"]:
        path = checkpoint / name
        before = path.read_bytes() if path.exists() else None
        write(path, tmp_path / "marker")
        with refused("--resume_from_checkpoint", "checkpoint-1 cannot be used"):
            train("out", 2, "--use_ema", *RESUME)
        assert not (tmp_path / "marker").exists(), name
        path.unlink() if before is None else path.write_bytes(before)
    for name in ("random_states_0.pkl", "scheduler.bin", "sampler.bin", "pytorch_model.bin", "scaler.pt"):
        write(checkpoint / name, tmp_path / "marker")
    assert len(train("out", 2, "--use_ema", *RESUME)) == 2
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["early-stopping.bin", "optimizer.bin", "random-0.bin", "custom_checkpoint_0.pkl"])
def test_training_of_an_adapter_runs_no_code(train_lora, scenes, tmp_path, name):
    options = ["--held_out", scenes]
    train_lora("out", 1, *options)
    zipped(tmp_path / "out" / "checkpoint-1" / name, tmp_path / "marker")
    with refused("--resume_from_checkpoint", "checkpoint-1 cannot be used"):
        train_lora("out", 2, *options, *RESUME)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({}, path),
        lambda path: torch.save({**random_states(), "torch": torch.zeros(3, dtype=torch.uint8)}, path),
        lambda path: torch.save({**random_states(), "python": (3, (1, 2), None)}, path),
    ],
    ids=["missing", "cut off", "empty", "no states", "torch", "python"],
)
def test_lost_or_damaged_random_states(train, tmp_path, damage):
    train("out", 1)
    damage(tmp_path / "out" / "checkpoint-1" / "random-0.bin")
    with refused("--resume_from_checkpoint", "checkpoint-1 cannot be used"):
        train("out", 2, *RESUME)


@pytest.mark.parametrize("name", ["training.json", "data-0.json", "model.safetensors", "optimizer.bin", "ema.bin"])
def test_damaged_files(train, tmp_path, name):
    train("out", 1, "--use_ema")
    path = tmp_path / "out" / "checkpoint-1" / name
    path.write_bytes(path.read_bytes()[:-40])
    with refused("checkpoint-1 cannot be used"):
        train("out", 2, "--use_ema", *RESUME)


def test_weights_of_another_model(train, tmp_path):
    from safetensors.torch import load_file, save_file

    train("out", 1)
    path = tmp_path / "out" / "checkpoint-1" / "model.safetensors"
    weights = load_file(path)
    name, tensor = next((name, tensor) for name, tensor in weights.items() if tensor.dim() == 2)
    for changed in ({**weights, "more": torch.zeros(1)}, {**weights, name: tensor[:1]}):
        save_file({key: value.contiguous() for key, value in changed.items()}, path)
        with refused("checkpoint-1 cannot be used", "more" if "more" in changed else name):
            train("out", 2, *RESUME)


def test_random_states_come_back():
    import random

    import numpy as np

    states = random_states()
    drawn = random.random(), np.random.rand(), torch.rand(())
    restore_random_states(states)
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn


def test_files_of_deepspeed(tmp_path, monkeypatch):
    """DeepSpeed unpickles its checkpoints, so they are checked first."""
    module = types.ModuleType("deepspeed.runtime.zero.config")

    class ZeroStageEnum:
        pass

    ZeroStageEnum.__module__, ZeroStageEnum.__qualname__ = module.__name__, "ZeroStageEnum"
    module.ZeroStageEnum = ZeroStageEnum
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "rank").mkdir()
    torch.save({"step": 1, "weights": torch.zeros(2), "stage": ZeroStageEnum()}, tmp_path / "rank" / "states.pt")
    check_deepspeed_files(tmp_path)
    for write in (zipped, legacy, pickled):
        write(tmp_path / "rank" / "more.pt", tmp_path / "marker")
        with refused("more.pt would run code: posix.mkdir" if write is zipped else "more.pt"):
            check_deepspeed_files(tmp_path)
    assert not (tmp_path / "marker").exists()
