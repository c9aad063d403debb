"""Checkpoints of runs that are killed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers import refused

from audiox_diffusers.training.run.checkpoints import STATE, find_checkpoint, save_checkpoint


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.fixture
def accelerator() -> Accelerator:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True)


def write(folder: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors", STATE):
        (folder / name).write_text(json.dumps({"step": 1}))


@pytest.fixture
def save(accelerator, tmp_path):
    return lambda step, limit=None, write=write: save_checkpoint(accelerator, tmp_path, step, write, limit)


def kill_at(monkeypatch, module, name: str, call: int, before=lambda *args: None) -> None:
    """Raise `Killed` instead of the call with this number."""
    real, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            before(*args)
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, function)


def half_remove(folder: Path) -> None:
    (Path(folder) / "model.safetensors").unlink()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def assert_complete(folder: Path) -> None:
    for name in names(folder):
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "model.safetensors",
            "optimizer.safetensors",
            STATE,
        ]


@pytest.mark.parametrize("killed", [1, 2], ids=["first removal", "second removal"])
def test_killed_while_removing_old_checkpoints(save, tmp_path, monkeypatch, killed):
    for step in (1, 2, 3):
        save(step)
    kill_at(monkeypatch, shutil, "rmtree", killed, half_remove)
    with pytest.raises(Killed):
        save(4, limit=2)
    assert_complete(tmp_path)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-4"
    monkeypatch.undo()
    save(5, limit=2)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_at_a_rename(save, tmp_path, monkeypatch, call):
    """Renames: the old `checkpoint-2` is hidden, the new one appears, `checkpoint-1` is hidden."""
    save(1)
    save(2)
    kill_at(monkeypatch, os, "replace", call)
    with pytest.raises(Killed):
        save(2, limit=1)
    assert_complete(tmp_path)
    assert find_checkpoint(tmp_path, "latest").name == ("checkpoint-1" if call == 2 else "checkpoint-2")


def test_killed_while_writing(save, tmp_path):
    save(1)

    def write_half(folder: Path) -> None:
        (folder / STATE).write_text("{}")
        raise Killed

    with pytest.raises(Killed):
        save(2, write=write_half)
    assert names(tmp_path) == ["checkpoint-1"]
    save(3)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]


@pytest.mark.parametrize("contents", [(), ("model.safetensors",), ("model.safetensors", "optimizer.safetensors")])
def test_incomplete_folders_are_not_checkpoints(save, tmp_path, contents):
    """Such as a copy that was cut short."""
    save(1)
    (tmp_path / "checkpoint-2").mkdir()
    for name in contents:
        (tmp_path / "checkpoint-2" / name).touch()
    (tmp_path / "checkpoint-3").write_text("a file")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-1"
    with refused("checkpoint-2", "has checkpoint-1"):
        find_checkpoint(tmp_path, "checkpoint-2")
