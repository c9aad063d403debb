"""Averages of the weights whose length is chosen after training."""

import json

import numpy as np
import pytest
import torch
from helpers import assert_equal, refused
from safetensors.torch import load_file

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.training.run import power_ema
from audiox_diffusers.training.run.power_ema import LONGEST, PowerFunctionAverages, Profile, combine, gamma_of


def test_exponents_of_the_paper():
    """Section 3.1 of arXiv 2312.02696."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    assert gamma_of(LONGEST) == pytest.approx(0, abs=1e-6)
    for sigma_rel in (0, -0.1, 0.3):
        with refused("sigma_rel must be above 0"):
            gamma_of(sigma_rel)


@pytest.mark.parametrize("gamma", [0.5, 3.0, 12.0])
def test_length_is_the_deviation_of_the_profile(gamma):
    times = np.linspace(0, 1, 200_001)
    profile = (gamma + 1) * times**gamma
    mean = np.trapezoid(profile * times, times)
    deviation = np.sqrt(np.trapezoid(profile * (times - mean) ** 2, times))
    assert gamma_of(deviation) == pytest.approx(gamma, rel=1e-3)


def test_average_of_a_known_path():
    """Weights that equal their step have the mean of the profile, `t (gamma + 1) / (gamma + 2)`."""
    weight = torch.zeros(1, dtype=torch.float64)
    averages = PowerFunctionAverages([weight])
    for step in range(1, 2001):
        averages.step([weight + step])
    for sigma_rel, (average,) in zip(power_ema.STORED, averages.averages, strict=True):
        gamma = gamma_of(sigma_rel)
        assert average.item() == pytest.approx(2000 * (gamma + 1) / (gamma + 2), rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.08, 0.10, 0.15])
def test_reconstruction_equals_the_direct_average(sigma_rel, monkeypatch):
    """A random walk of weights, averaged step by step with the wanted length, and from the stored averages."""
    walk = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0)
    averages, snapshots = PowerFunctionAverages([walk[0]]), []
    for step, weights in enumerate(walk, 1):
        averages.step([weights])
        if step % 50 == 0:
            stored = [average[0].clone() for average in averages.averages]
            snapshots += [(Profile(step, length), value) for length, value in zip(power_ema.STORED, stored)]
    monkeypatch.setattr(power_ema, "STORED", (sigma_rel, sigma_rel))
    direct = PowerFunctionAverages([walk[0]])
    for weights in walk:
        direct.step([weights])

    factors, error = combine([profile for profile, _ in snapshots], Profile(1000, sigma_rel))
    found = sum(factor * value for factor, (_, value) in zip(factors, snapshots, strict=True))
    assert factors.sum() == pytest.approx(1, abs=0.01) and error < 0.02
    spread = walk.std(0)
    assert ((found - direct.averages[0][0]).abs() < 0.01 * spread).all()


def test_a_stored_average_is_itself():
    stored = [Profile(step, length) for step in (100, 200) for length in power_ema.STORED]
    factors, error = combine(stored, stored[2])
    np.testing.assert_allclose(factors, [0, 0, 1, 0], atol=1e-6)
    assert error < 1e-6


@pytest.fixture
def run(train, tmp_path):
    """Four steps with a checkpoint after each two."""
    train("out", 4, "--post_hoc_ema", "--checkpointing_steps", 2)
    return tmp_path / "out"


def exported(folder) -> dict[str, torch.Tensor]:
    (file,) = (folder / "transformer").glob("*.safetensors")
    return load_file(file)


def test_command_exports_an_average(run, tmp_path, capsys):
    command = ["reconstruct-ema", "--run", str(run), "--output_dir", str(tmp_path / "averaged"), "--sigma_rel", "0.1"]
    assert main(command) == 0
    assert "average of length 0.1 at step 4, from 2 checkpoints" in capsys.readouterr().out
    stored = load_file(run / "checkpoint-4" / "post-hoc-ema.safetensors")
    sums = sorted(tensor.double().sum().item() for tensor in stored.values())
    averaged = exported(tmp_path / "averaged")
    for tensor in averaged.values():
        nearest = min(sums, key=lambda value: abs(value - tensor.double().sum().item()))
        assert tensor.double().sum().item() == pytest.approx(nearest, rel=1e-4, abs=1e-4)
    assert any(not torch.equal(tensor, exported(run)[name]) for name, tensor in averaged.items())
    assert AudioXPipeline.from_pretrained(tmp_path / "averaged").transformer.num_parameters() > 0
    assert "power function of relative length 0.1" in (tmp_path / "averaged" / "README.md").read_text()


def test_bad_input(run, train, tmp_path, capsys):
    output = ["--output_dir", str(tmp_path / "averaged"), "--sigma_rel", "0.1"]

    def said(*options: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["reconstruct-ema", *options])
        assert stopped.value.code
        streams = capsys.readouterr()
        return streams.err + str(stopped.value.code)

    train("plain", 1)
    assert "has no checkpoint with averages; train with --post_hoc_ema" in said(
        "--run", str(tmp_path / "plain"), *output
    )
    assert "--step 3: --run" in said("--run", str(run), *output, "--step", "3")
    assert "--sigma_rel" in said("--run", str(run), *output[:2], "--sigma_rel", "0.4")
    assert "must be another folder" in said("--run", str(run), "--output_dir", str(run), "--sigma_rel", "0.1")
    assert not (tmp_path / "averaged").exists()


def test_resume_keeps_the_averages(train, run, tmp_path):
    train("again", 2, "--post_hoc_ema", "--checkpointing_steps", 2)
    train("again", 4, "--post_hoc_ema", "--checkpointing_steps", 2, "--resume_from_checkpoint", "latest")
    for name in ("post-hoc-ema.safetensors", "post-hoc-ema.json"):
        first, second = (folder / "checkpoint-4" / name for folder in (run, tmp_path / "again"))
        if name.endswith("json"):
            assert json.loads(first.read_text()) == json.loads(second.read_text())
        else:
            assert_equal(load_file(second), load_file(first))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ema_device", "cpu"], "--ema_device cpu has no effect without --use_ema or --post_hoc_ema"),
        (["--optimizer", "schedulefree", "--post_hoc_ema"], "leave out --post_hoc_ema"),
        (["--gradient_checkpointing_interval", 2], "has no effect without --gradient_checkpointing"),
    ],
)
def test_options_that_exclude_each_other(train, options, message):
    with refused(message):
        train("out", 1, *options)
