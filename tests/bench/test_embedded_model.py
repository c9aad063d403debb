"""Scores of the embedded model on a few items of the bench, with fixed seeds."""

import pytest

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench import run_bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scores():
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    pipe.set_progress_bar_config(disable=True)
    report = run_bench(pipe, ["text", "video", "image", "audio", "silence", "vae"], seeds=1, count=16, ceilings=False)
    return {task: {name: figure.mean for name, figure in figures.items()} for task, figures in report.tasks.items()}


def test_text(scores):
    assert scores["text"]["class, one"] >= 0.8
    assert scores["text"]["order"] >= 0.4
    assert scores["text"]["swap"] >= 0.6


def test_video(scores):
    assert scores["video"]["onset F1"] >= 0.8
    assert scores["video"]["class"] >= 0.9
    assert scores["video"]["count"] >= 0.7


def test_image(scores):
    assert scores["image"]["class"] >= 0.9


def test_audio(scores):
    assert scores["audio"]["continued"] >= 0.8
    assert scores["audio"]["gap class"] >= 0.8


def test_silence(scores):
    assert scores["silence"]["text"] >= 0.7
    assert scores["silence"]["video"] >= 0.7


def test_vae(scores):
    assert scores["vae"]["log-mel distance"] < 0.2
