"""`--held_out` in full training. Adapters are tested in test_lora.py."""

import json
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from helpers import assert_equal, refused
from safetensors.torch import load_file

from audiox_diffusers.training import FullTraining
from audiox_diffusers.training.methods.early_stopping import HELD_OUT_LOSS, EarlyStopping


def exported(folder):
    (file,) = (folder / "transformer").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("options", [[], ["--use_ema", "--ema_decay", 0.5]], ids=["plain", "averaged"])
def test_the_best_model_is_exported(train, tmp_path, monkeypatch, options):
    found, kept = iter([0.5, 0.4, 0.6, 0.7, 0.1]), []

    def measure(stopping, model):
        kept.append({name: tensor.clone() for name, tensor in model.transformer.state_dict().items()})
        return {HELD_OUT_LOSS: next(found)}

    monkeypatch.setattr(EarlyStopping, "measure", measure)
    options = [*options, "--held_out", train.scenes, "--early_stopping_patience", 2, "--validation_steps", 1]
    losses = train("out", 9, *options, "--checkpointing_steps", 3)
    assert list(losses) == [1, 2, 3, 4]
    assert_equal(exported(tmp_path / "out"), kept[1])
    assert "- steps: 4; weights of step 2, the best on held-out clips" in (tmp_path / "out" / "README.md").read_text()

    # A resumed run knows the best weights and how long it has waited.
    found = iter([0.7])
    assert train("out", 9, *options, "--resume_from_checkpoint", "checkpoint-3") == losses
    assert_equal(exported(tmp_path / "out"), kept[1])


def test_measuring_changes_nothing_and_is_repeatable(train, tmp_path):
    """Trained encoders, whose embeddings are part of the loss."""
    options = ["--train_image_encoder", "--checkpointing_steps", 1]
    measured = [*options, "--held_out", train.scenes, "--validation_steps", 1]
    assert train("out", 2, *measured) == train("plain", 2, *options)

    def held_out() -> list[float]:
        return [
            json.loads(line)["held_out_loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()
        ]

    found = held_out()
    assert len(set(found)) == 2 and all(0 < loss < 5 for loss in found)
    train("out", 2, *measured, "--resume_from_checkpoint", "checkpoint-1")
    assert held_out() == found


@pytest.mark.parametrize("method", ["train", "train_lora"])
def test_loss_by_noise_level(method, request, tmp_path):
    """The quarters have the mean losses of their draws. The card has those of the kept weights."""
    run = request.getfixturevalue(method)
    trainer = run.build("measured", 1, "--held_out", run.scenes)
    stopping, draws = trainer.early_stopping, 8 * 7
    times = trainer.strategy.timesteps.sample(0, draws)
    trainer.strategy.loss = lambda model, batch, first: times[first : first + len(batch.samples)]
    found = stopping.measure(trainer.model)
    names = ["held_out_loss/0-0.25", "held_out_loss/0.25-0.5", "held_out_loss/0.5-0.75", "held_out_loss/0.75-1"]
    for number, name in enumerate(names):
        inside = times[(times >= number / 4) & (times < (number + 1) / 4)]
        assert found[name] == pytest.approx(inside.mean().item())
    assert found["held_out_loss"] == pytest.approx(times.mean().item()) and len(found) == 5

    run("out", 2, "--held_out", run.scenes, "--validation_steps", 1)
    reports = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(set(names) <= report.keys() for report in reports)
    best = min(reports, key=lambda report: report["held_out_loss"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- held-out loss: {best['held_out_loss']:.4f}" in card
    parts = ", ".join(f"{name.removeprefix('held_out_loss/')} {best[name]:.4g}" for name in names)
    assert f"- held-out loss by timestep, from clean (0) to noise (1): {parts}\n" in card


def test_a_quarter_without_draws_has_no_loss(train):
    """Timesteps near noise alone."""
    options = ["--weighting_scheme", "logit_normal", "--logit_mean", 5, "--logit_std", 0.1]
    trainer = train.build("out", 1, "--held_out", train.scenes, *options)
    assert [*trainer.early_stopping.measure(trainer.model)] == ["held_out_loss", "held_out_loss/0.75-1"]


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_weights(kind):
    training = FullTraining(SimpleNamespace(held_out="clips", trained_encoders=()))
    with refused("--held_out needs whole weights; leave it out with FSDP and DeepSpeed"):
        training.check_devices(SimpleNamespace(distributed_type=kind))
