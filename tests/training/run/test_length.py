"""`--num_train_epochs`."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from helpers import refused

from audiox_diffusers.training import FullTraining, LoraTraining, parse_args
from audiox_diffusers.training.data import first_look


@pytest.fixture
def epochs(train):
    """Train for epochs: `epochs(output, number, *options)` -> the steps of the run."""

    def run(output: str, number: int, *options: object) -> list[int]:
        return list(train(output, None, "--num_train_epochs", number, *options))

    return run


def test_steps_of_epochs(epochs, tmp_path):
    """Seven clips, two passes and batches of 2 are 7 steps; with 2 accumulated, 4. A resume may take more epochs."""
    assert epochs("out", 2) == [1, 2, 3, 4, 5, 6, 7]
    assert epochs("accumulated", 1, "--gradient_accumulation_steps", 2) == [1, 2]
    assert epochs("accumulated", 2, "--gradient_accumulation_steps", 2, "--resume_from_checkpoint", "latest") == [
        1,
        2,
        3,
        4,
    ]
    assert "num_train_epochs: 2" in (tmp_path / "out" / "README.md").read_text()


def test_records_of_a_long_table_are_counted(epochs, scenes, monkeypatch):
    monkeypatch.setattr(first_look, "ROWS", 3)
    assert epochs("out", 1) == [1, 2, 3, 4]


def test_mixed_datasets(epochs, scenes, tmp_path):
    """An epoch is as many samples as all datasets have records, whatever their weights."""
    folder = tmp_path / "one"
    folder.mkdir()
    first = json.loads((scenes / "metadata.jsonl").read_text().splitlines()[0])
    shutil.copy(scenes / first["file_name"], folder)
    (folder / "metadata.jsonl").write_text(json.dumps(first) + "\n")
    assert epochs("out", 1, "--dataset", scenes, folder, "--dataset_weights", 1, 3) == [1, 2, 3, 4]


def test_streamed_data_needs_steps(epochs, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(first_look, "ROWS", 3)
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for row in map(json.loads, (scenes / "metadata.jsonl").read_text().splitlines()):
            tar.add(scenes / row["file_name"], row["file_name"])
            (tmp_path / "caption.txt").write_text(row["caption"])
            tar.add(tmp_path / "caption.txt", Path(row["file_name"]).stem + ".txt")
    with refused(
        "--num_train_epochs needs the number of records, which is not known for --dataset", "--max_train_steps"
    ):
        epochs("out", 1, "--dataset", shard)


@pytest.mark.parametrize("method", [FullTraining, LoraTraining])
def test_one_length(method):
    options = ["--pretrained_model_name_or_path", "m", "--dataset", "d", "--output_dir", "out"]
    with refused("--max_train_steps or --num_train_epochs is required"):
        parse_args(options, method)
    with refused("--num_train_epochs cannot be combined with --max_train_steps"):
        parse_args([*options, "--max_train_steps", "3", "--num_train_epochs", "1"], method)
    with refused("--num_train_epochs must be at least 1, got 0"):
        parse_args([*options, "--num_train_epochs", "0"], method)
