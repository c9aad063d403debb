"""Runs that diverge stop, keep their last good checkpoint and export nothing."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiox_diffusers.training import Trainer, main
from audiox_diffusers.training.run import divergence
from audiox_diffusers.training.run.divergence import DivergenceError
from audiox_diffusers.training.strategy import DiffusionStrategy


def losses_from(monkeypatch, change) -> None:
    """Let `change(loss, number)` replace the loss of forward pass `number`."""
    loss, number = DiffusionStrategy.loss, iter(range(1, 1000))
    monkeypatch.setattr(DiffusionStrategy, "loss", lambda *args: change(loss(*args), next(number)))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [[], ["--use_ema"], ["--gradient_accumulation_steps", 2]], ids=str)
def test_loss_that_is_not_finite(train, tmp_path, monkeypatch, value, options):
    monkeypatch.setattr(divergence, "MAX_STEPS", 3)
    first = 5 if "--gradient_accumulation_steps" in options else 3
    losses_from(monkeypatch, lambda loss, number: loss * value if number >= first else loss)
    with pytest.raises(
        DivergenceError, match="the last 3 steps, up to step 5, were not finite.*out: checkpoint-1, ch"
    ):
        train("out", 9, *options, "--checkpointing_steps", 1, "--checkpoints_total_limit", 2)
    assert names(tmp_path / "out") == {"checkpoint-1", "checkpoint-2", "log.jsonl", "run.yaml"}
    for path in (tmp_path / "out").glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_gradient_that_is_not_finite(train, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "MAX_STEPS", 2)
    # The gradient of the square root is infinite at 0.
    losses_from(monkeypatch, lambda loss, number: loss + (loss.sum() * 0).sqrt() if number > 1 else loss)
    with pytest.raises(DivergenceError, match="the last 2 steps, up to step 3"):
        train("out", 9, "--checkpointing_steps", 1)
    assert names(tmp_path / "out") == {"checkpoint-1", "log.jsonl", "run.yaml"}


def test_single_step_is_left_out(train, tmp_path, monkeypatch):
    losses_from(monkeypatch, lambda loss, number: loss * math.nan if number == 2 else loss)
    losses = train("out", 4, "--use_ema", "--checkpointing_steps", 1)
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [2]
    assert {f"checkpoint-{step}" for step in (1, 3, 4)} < names(tmp_path / "out")
    assert "checkpoint-2" not in names(tmp_path / "out")
    (file,) = (tmp_path / "out" / "transformer").glob("*.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())
    assert "nan" not in (tmp_path / "out" / "README.md").read_text()


def test_last_step_that_is_not_finite(train, tmp_path, monkeypatch):
    losses_from(monkeypatch, lambda loss, number: loss * math.nan if number == 3 else loss)
    with pytest.raises(DivergenceError, match="the last 1 steps, up to step 3"):
        train("out", 3, "--checkpointing_steps", 2)
    assert names(tmp_path / "out") == {"checkpoint-2", "log.jsonl", "run.yaml"}


def test_weights_that_are_not_finite(train, tmp_path, monkeypatch):
    step = Trainer._train_step

    def poison(trainer, batches):
        report = step(trainer, batches)
        if trainer.step == 1:
            trainer._trained_parameters()[0].data.view(-1)[0] = math.inf
        return report

    monkeypatch.setattr(Trainer, "_train_step", poison)
    with pytest.raises(DivergenceError, match="weights are not finite after step 2"):
        train("out", 2, "--checkpointing_steps", 1)
    assert names(tmp_path / "out") == {"checkpoint-1", "log.jsonl", "run.yaml"}


def test_adapter_that_diverges(train_lora, tmp_path):
    with pytest.raises(DivergenceError):
        train_lora("out", 4, "--learning_rate", 1e25, "--checkpointing_steps", 2)
    assert names(tmp_path / "out") == {"cache", "log.jsonl", "run.yaml"}


def test_script_ends_with_an_error(small_model, scenes, tmp_path):
    options = ["--pretrained_model_name_or_path", small_model, "--dataset", scenes, "--output_dir", tmp_path / "out"]
    options += ["--max_train_steps", 3, "--learning_rate", 1e25, "--dataloader_num_workers", 0]
    with pytest.raises(SystemExit, match="^error: training diverged: .* Checkpoints in .*out: none"):
        main([str(word) for word in options])
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
