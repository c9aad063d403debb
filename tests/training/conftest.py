import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.testing import create_small_pipeline
from audiox_diffusers.training import DistillTraining, FullTraining, LoraTraining, Trainer, parse_args


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with the small model."""
    folder = tmp_path_factory.mktemp("small") / "audiox-small"
    create_small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder with seven captioned clips of two seconds."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 7, seconds=2.0, fps=10, size=32)


class Runs:
    """Training runs in this process. Options that are given come after the usual ones, and so replace them."""

    def __init__(self, method: type, small_model: Path, scenes: Path, folder: Path):
        self.method, self.small_model, self.scenes, self.folder = method, small_model, scenes, folder

    def build(self, output: str, steps: int | None, *options: object) -> Trainer:
        """Build the trainer of a run that writes into `folder / output`. Without `steps`, an option sets its length."""
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        usual = {
            "--pretrained_model_name_or_path": self.small_model,
            "--dataset": self.scenes,
            "--output_dir": self.folder / output,
            "--max_train_steps": steps,
            "--train_batch_size": 2,
            "--learning_rate": 1e-3,
            "--checkpointing_steps": 1000,
            "--dataloader_num_workers": 0,
            "--shuffle_buffer_size": 4,
        }
        arguments = [str(word) for pair in usual.items() if pair[1] is not None for word in pair]
        return Trainer(parse_args([*arguments, *map(str, options)], self.method), self.method)

    def __call__(self, output: str, steps: int | None, *options: object) -> dict[int, float]:
        """Train, and return the losses of the run, by step."""
        self.build(output, steps, *options).train()
        lines = (self.folder / output / "log.jsonl").read_text().splitlines()
        return {report["step"]: report["loss"] for report in map(json.loads, lines)}


@pytest.fixture
def train(small_model, scenes, tmp_path):
    """Train all weights: `train(output, steps, *options)` -> the losses of the run, by step. See [`Runs`]."""
    return Runs(FullTraining, small_model, scenes, tmp_path)


@pytest.fixture
def train_lora(small_model, scenes, tmp_path):
    """Train an adapter, see [`train`]."""
    return Runs(LoraTraining, small_model, scenes, tmp_path)


@pytest.fixture
def train_student(small_model, scenes, tmp_path):
    """Distill, see [`train`]."""
    return Runs(DistillTraining, small_model, scenes, tmp_path)
