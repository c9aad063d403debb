"""Metrics of the validation audio during training, with small networks instead of the released ones."""

import json

import numpy as np
import pytest
from helpers import refused
from small_networks import SmallNetwork

from audiox_diffusers.evaluation import catalog
from audiox_diffusers.media import save_audio


@pytest.fixture
def validate(train, tmp_path, monkeypatch):
    """Train two steps with validation prompts, and return the output folder."""
    for name in set(catalog.NETWORKS) - {"onsets"}:
        monkeypatch.setitem(catalog.NETWORKS, name, SmallNetwork(name))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "band 1"}\n{"prompt": "band 2"}\n')
    (tmp_path / "real").mkdir()
    for number in range(3):
        sound = 0.1 * np.random.default_rng(number).normal(size=(1, 16_000)).astype(np.float32)
        save_audio(tmp_path / "real" / f"{number}.wav", sound, 16_000)

    def run(*options):
        usual = ["--validation_prompts", prompts, "--validation_steps", 1, "--validation_inference_steps", 2]
        train("out", 2, *usual, *options)
        return tmp_path / "out"

    return run


def test_each_validation_is_measured_and_the_card_has_the_last(validate, tmp_path):
    output = validate("--validation_metrics", "clap,fad", "--validation_reference", tmp_path / "real")
    for step in (1, 2):
        report = json.loads((output / "validation" / f"step-{step}" / "metrics.json").read_text())
        figures = {figure["metric"]: figure for figure in report["figures"]}
        assert set(figures) == {"clap", "fad"} and figures["clap"]["count"] == 2
    expected = ", ".join(f"{name} {figures[name]['value']:.4g}" for name in ("fad", "clap"))
    card = (output / "README.md").read_text()
    assert "- validation at step 2: " in card
    assert all(part in card for part in expected.split(", "))


def test_missing_weights_are_refused_before_the_first_step(validate, tmp_path, monkeypatch):
    class Missing(SmallNetwork):
        def load(self, folder, device):
            raise FileNotFoundError("clap cannot be loaded: no connection")

    monkeypatch.setitem(catalog.NETWORKS, "clap", Missing("clap"))
    with refused("--validation_metrics clap", "no connection"):
        validate("--validation_metrics", "clap")
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ("fda", "--validation_metrics fda: unknown"),
        ("kad", "--validation_metrics kad needs --validation_reference"),
        ("desync", "--validation_metrics desync needs videos"),
    ],
)
def test_metrics_that_cannot_run_are_refused(validate, metrics, words):
    with refused(words):
        validate("--validation_metrics", metrics)
