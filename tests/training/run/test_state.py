"""Checkpoints of strangers run no code, and damaged ones are refused."""

import json
import os
import pickle
import random
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file

from audiox_diffusers.training.run.deepspeed_files import check_deepspeed_files
from audiox_diffusers.training.run.random_states import random_states, set_random_states

RESUME = ["--resume_from_checkpoint", "latest"]


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


def malformed(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"state": Payload(marker)})[:-1] + b"\xff\xff")


ATTACKS = [zipped, legacy, pickled, malformed]
RANDOM = {"random-0.json", "random-0.safetensors"}
FILES = {"training.json", "data-0.json", "model.safetensors", "optimizer.json", "optimizer.safetensors"} | RANDOM
EMA = {"ema.json", "ema.safetensors", "post-hoc-ema.json", "post-hoc-ema.safetensors"}
STUDENT = ["--fake_updates", 1, "--teacher_guidance_scale", 2]
RUNS = {
    "full": ("train", ["--use_ema", "--post_hoc_ema"], FILES | EMA),
    "adapter": ("train_lora", ["--held_out", "SCENES"], FILES | {"early-stopping.json", "early-stopping.safetensors"}),
    "student": ("train_student", STUDENT, FILES | {"strategy.json", "strategy.safetensors"}),
}


@pytest.fixture(params=RUNS)
def run(request, scenes, tmp_path):
    """A run that stopped: its checkpoint, the names of its files, and a function that loads the checkpoint."""
    name, options, files = RUNS[request.param]
    train = request.getfixturevalue(name)
    options = [scenes if word == "SCENES" else word for word in options]
    train("out", 1, *options)
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert {path.name for path in checkpoint.iterdir()} == files
    # Its checkpoint can be loaded many times. Each whole start takes half a second.
    return checkpoint, sorted(files), train.build("out", 2, *options, *RESUME)._load_state


def test_code_in_any_file(run, tmp_path):
    checkpoint, files, load = run
    for name in files:
        path = checkpoint / name
        before = path.read_bytes()
        for write in ATTACKS:
            write(path, tmp_path / "marker")
            with refused("--resume_from_checkpoint", f"checkpoint-1/{name} cannot be used: it is not "):
                load()
            assert not (tmp_path / "marker").exists(), name
        path.write_bytes(before)
    load()


def test_damaged_files(run):
    """Files that are missing, empty or cut off, and JSON of another kind."""
    checkpoint, files, load = run
    for name in files:
        path = checkpoint / name
        before = path.read_bytes()
        for damaged in (None, b"", before[:-40], b"[]" if path.suffix == ".json" else before + b"more"):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            # A folder without its description is not a checkpoint, such as a copy that was cut short.
            if damaged is not None or name != "training.json":
                with refused("--resume_from_checkpoint", f"checkpoint-1/{name} cannot be used: "):
                    load()
        path.write_bytes(before)
    load()


def leaves(value, path=()):
    """Yield the path of every plain value in a JSON file."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


def replace(value, path: tuple, new):
    if not path:
        return new
    items = dict(value) if isinstance(value, dict) else list(value)
    items[path[0]] = replace(items[path[0]], path[1:], new)
    return items


def test_edited_json(run):
    """Values throughout the JSON files, replaced by values of another kind. There is never another error."""
    checkpoint, files, load = run
    for name in (name for name in files if name.endswith(".json")):
        path = checkpoint / name
        before = path.read_text()
        value = json.loads(before)
        paths = [leaf for leaf in leaves(value) if name != "training.json" or leaf[0] in ("step", "num_processes")]
        for leaf in paths[:: max(1, len(paths) // 10)]:
            path.write_text(json.dumps(replace(value, leaf, {"unexpected": [leaf[-1]]})))
            with refused("--resume_from_checkpoint", f"checkpoint-1/{name} cannot be used: "):
                load()
        path.write_text(before)
    load()


def test_a_start_from_a_checkpoint_with_code(train, tmp_path):
    """The whole start of a run."""
    train("out", 1)
    path = tmp_path / "out" / "checkpoint-1" / "optimizer.safetensors"
    for write in ATTACKS:
        write(path, tmp_path / "marker")
        with refused("checkpoint-1/optimizer.safetensors cannot be used: it is not a safetensors file"):
            train("out", 2, *RESUME)
    assert not (tmp_path / "marker").exists()


def test_checkpoints_of_earlier_versions(train, tmp_path):
    """They contain pickle files, which are not opened."""
    train("out", 1)
    checkpoint = tmp_path / "out" / "checkpoint-1"
    for name in ("optimizer.bin", "random-0.bin", "custom_checkpoint_7.pkl", "random_states_0.pkl", "scaler.pt"):
        zipped(checkpoint / name, tmp_path / "marker")
        with refused(
            f"checkpoint-1 cannot be used: {name} is a pickle file, which earlier versions wrote and which could run code",
            "Finish this run with the version that began it, or start it again in another --output_dir.",
        ):
            train("out", 2, *RESUME)
        (checkpoint / name).unlink()
    assert not (tmp_path / "marker").exists()
    assert list(train("out", 2, *RESUME)) == [1, 2]


def test_weights_of_another_model(train, tmp_path):
    train("out", 1)
    path = tmp_path / "out" / "checkpoint-1" / "model.safetensors"
    weights = load_file(path)
    name, tensor = next((name, tensor) for name, tensor in weights.items() if tensor.dim() == 2)
    for changed in ({"more": torch.zeros(1)}, {name: tensor[:1]}, {name: tensor.half()}):
        save_file({key: value.contiguous() for key, value in {**weights, **changed}.items()}, path)
        with refused("model.safetensors cannot be used", *changed):
            train("out", 2, *RESUME)


@pytest.mark.parametrize("name", ["optimizer", "random-0"])
def test_files_of_another_run(train, tmp_path, name):
    """Files that belong together, of an optimizer with other steps, or from a machine with another generator."""
    train("out", 1)
    train("other", 1, "--train_text_encoder")
    for suffix in (".json", ".safetensors"):
        file = f"checkpoint-1/{name}{suffix}"
        shutil.copy(tmp_path / "other" / file, tmp_path / "out" / file)
    if name == "random-0":
        assert list(train("out", 2, *RESUME)) == [1, 2]
        return
    with refused("optimizer.json cannot be used: optimizer/param_groups/0/params must have"):
        train("out", 2, *RESUME)


def test_random_states_come_back():
    random.gauss(0, 1)
    np.random.randn(1)
    states = random_states()

    def draw():
        return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(()).item()]

    drawn = draw()
    draw()
    set_random_states(states)
    assert draw() == drawn


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
    for write in ATTACKS:
        write(tmp_path / "rank" / "more.pt", tmp_path / "marker")
        with refused(
            "more.pt cannot be used", "it would run code: posix.mkdir" if write is zipped else "more.pt cannot be used"
        ):
            check_deepspeed_files(tmp_path)
    assert not (tmp_path / "marker").exists()
