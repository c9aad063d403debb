"""`--optimizer`."""

import sys
import types

import pytest
import torch
from helpers import assert_equal, refused
from safetensors.torch import load_file

from audiox_diffusers.training import FullTraining, optimizers, parse_args
from audiox_diffusers.training.optimizers import MuonWithAdamW, torch_optimizers

NEEDED = ["--pretrained_model_name_or_path", "m", "--dataset", "d", "--output_dir", "out", "--max_train_steps", "1"]


def parsed(*options: str):
    return parse_args([*NEEDED, *options], FullTraining)


@pytest.mark.parametrize("name", ["prodigy", "schedulefree", "muon", "Adafactor"])
def test_runs_learn_and_resume_exactly(train_lora, name, tmp_path):
    """Checkpoints hold the state of any optimizer."""
    rate = 1 if name == "prodigy" else 1e-2
    options = ["--optimizer", name, "--learning_rate", rate, "--held_out", train_lora.scenes, "--validation_steps", 1]
    unbroken = train_lora("out", 4, *options, "--checkpointing_steps", 2)
    weights = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert train_lora("out", 4, *options, "--resume_from_checkpoint", "checkpoint-2") == unbroken
    assert_equal(load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors"), weights)
    start = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    last = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
    assert any(not torch.equal(start[key], last[key]) for key in start)


def test_schedule_free_weights_are_exported(train, tmp_path):
    """The export has the average, and the checkpoint the weights of training."""
    train("out", 3, "--optimizer", "schedulefree", "--learning_rate", 1e-2)
    (file,) = (tmp_path / "out" / "transformer").glob("*.safetensors")
    exported, checkpoint = load_file(file), load_file(tmp_path / "out" / "checkpoint-3" / "model.safetensors")
    assert any(not torch.equal(tensor, checkpoint[f"transformer.{key}"]) for key, tensor in exported.items())


def test_measuring_does_not_change_schedule_free_training(train_lora):
    options = ["--optimizer", "schedulefree", "--learning_rate", 1e-2, "--held_out", train_lora.scenes]
    often = train_lora("often", 3, *options, "--validation_steps", 1)
    assert often == train_lora("once", 3, *options, "--validation_steps", 3)


def test_muon_trains_matrices_and_adamw_the_rest():
    """Each part does what torch's optimizer alone does, and a schedule reaches both."""
    settings = {"lr": 0.1, "weight_decay": 0.01}

    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((3,), (4, 3), (2, 3, 1), (2, 2))
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]

    def steps(parameters, *optimizers):
        schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = parameter.detach() ** 2
            for optimizer in optimizers:
                optimizer.step()
            for schedule in schedules:
                schedule.step()
        return [parameter.detach() for parameter in parameters]

    ours = parameters()
    both = MuonWithAdamW(ours, betas=(0.9, 0.95), eps=1e-8, **settings)
    theirs = parameters()
    muon = torch.optim.Muon([theirs[1], theirs[3]], adjust_lr_fn="match_rms_adamw", **settings)
    adamw = torch.optim.AdamW([theirs[0], theirs[2]], betas=(0.9, 0.95), **settings)
    assert_equal(steps(ours, both), steps(theirs, muon, adamw))


@pytest.mark.parametrize("name", torch_optimizers())
def test_optimizers_of_torch_can_be_built(name):
    """Options that an optimizer lacks are left out."""
    optimizer = optimizers.build_optimizer(parsed("--optimizer", name), torch.nn.Linear(2, 2), 1)
    assert type(optimizer) is getattr(torch.optim, name) and optimizer.param_groups[0]["lr"] == 1e-5


@pytest.mark.parametrize("name", ["adam", "LBFGS", "SparseAdam", "Muon", "Optimizer", "lr_scheduler", ""])
def test_unknown_optimizers(name):
    with refused("--optimizer must be one of adamw, adamw8bit, prodigy, schedulefree, muon, ASGD,", repr(name)):
        parsed("--optimizer", name)


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("schedulefree", "schedulefree")]
)
def test_missing_packages(monkeypatch, name, package):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with refused(f'--optimizer {name} needs {package}: pip install "audiox-diffusers[optimizers]"'):
        parsed("--optimizer", name)


def test_eight_bits(monkeypatch):
    """Both options use the class of bitsandbytes."""
    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = type("AdamW8bit", (torch.optim.AdamW,), {})
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: name)
    for option in (["--use_8bit_adam"], ["--optimizer", "adamw8bit"]):
        optimizer = optimizers.build_optimizer(parsed(*option), torch.nn.Linear(2, 2), 1)
        assert type(optimizer) is module.AdamW8bit
    with refused("--use_8bit_adam cannot be combined with --optimizer muon"):
        parsed("--use_8bit_adam", "--optimizer", "muon")


def test_schedule_free_takes_no_schedule():
    with refused("--optimizer schedulefree needs no schedule; leave out --lr_scheduler cosine"):
        parsed("--optimizer", "schedulefree", "--lr_scheduler", "cosine")
    with refused("--optimizer schedulefree averages the weights itself; leave out --use_ema"):
        parsed("--optimizer", "schedulefree", "--use_ema")
