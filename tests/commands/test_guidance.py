"""Guidance on the command line: guiders, weights, and negative video and audio."""

import json

import numpy as np
import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from helpers import seeded

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.media import load_audio, read_recipe, save_audio, save_video
from audiox_diffusers.testing import SAMPLING_RATE, create_small_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, a video and a sound."""
    folder = tmp_path_factory.mktemp("guidance")
    create_small_pipeline().save_pretrained(folder / "small")
    frames = np.random.default_rng(0).integers(0, 256, (20, 32, 48, 3), dtype=np.uint8)
    save_video(folder / "clip.mp4", frames, fps=10)
    tone = 0.5 * np.sin(np.arange(SAMPLING_RATE) * 0.1, dtype=np.float32)
    save_audio(folder / "tone.wav", np.stack([tone, tone]), SAMPLING_RATE)
    return folder


@pytest.fixture
def generate(folder, tmp_path, monkeypatch):
    """Run `audiox generate` in the folder of the files; return the samples, scaled to a peak of 1."""
    monkeypatch.chdir(folder)

    def run(*words, name="sound.wav"):
        options = ["--model", "small", "--prompt", "a", "--steps", "2", "--length", "0.3", "--precise", "--normalize"]
        assert main(["generate", *options, *words, "-o", str(tmp_path / name)]) == 0
        return load_audio(tmp_path / name)[0]

    return run


APG = {"adaptive_projected_guidance_momentum": -0.75, "adaptive_projected_guidance_rescale": 0.0, "eta": 0.5}


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (
            "--guider apg:eta=0.5,momentum=-0.75",
            lambda: {"guider": AdaptiveProjectedGuidance(guidance_scale=3, **APG)},
        ),
        ("--guider cfg-zero-star", lambda: {"guider": ClassifierFreeZeroStarGuidance(guidance_scale=3)}),
        (
            "--guidance text=3,audio=2 --negative-prompt b --negative-audio tone.wav",
            lambda: {"guidance_scale": {"text": 3, "audio": 2}, "negative_prompt": "b", "negative_audio": "tone.wav"},
        ),
        (
            "--negative-video clip.mp4 --guidance-interval 0.2-0.9",
            lambda: {"negative_video": "clip.mp4", "guidance_scale": 3.0, "guidance_interval": (0.2, 0.9)},
        ),
    ],
)
def test_options_are_arguments_of_the_pipeline(generate, words, arguments):
    guidance = [] if "--guidance " in words else ["--guidance", "3"]
    actual = generate(*words.split(), *guidance)
    pipe = AudioXPipeline.from_pretrained("small")
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "audio_length_in_s": 0.3, "generator": seeded(), "output_type": "pt"}
    expected = pipe("a", **arguments(), **options).audios[0]
    torch.testing.assert_close(actual, expected / expected.abs().max(), rtol=0, atol=1e-4)
    assert (actual - generate("--guidance", "3")).abs().max() > 1e-3


@pytest.mark.parametrize("text", ["apg", "cfg-zero-star:zero_steps=0"])
def test_a_guider_takes_the_scale_of_the_model(generate, tmp_path, text):
    scale = AudioXPipeline.from_pretrained("small").config.default_guidance_scale
    assert torch.equal(generate("--guider", text), generate("--guider", text, "--guidance", str(scale)))
    assert read_recipe(tmp_path / "sound.wav").guider == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--guider apq", "--guider: must be one of apg, cfg-zero-star, got 'apq'"),
        ("--guider apg:beta=1", "--guider: must be apg with any of its options momentum, eta, norm"),
        ("--guider apg --guidance text=3", "--guidance must be one number with a guider"),
        ("--guider apg --guidance-interval 0-0.5", "--guidance-interval does not go with a guider"),
        ("--guider apg --guidance-rescale 0.5", "--guidance-rescale does not go with a guider"),
        ("--guidance video=3", "--guidance has a weight for video, but the sound has no prompt of that kind"),
        ("--guidance text=3 --negative-audio tone.wav", "--guidance needs a weight for audio other than 1"),
        ("--guidance text=1 --negative-prompt b", "the negative prompt has no effect"),
        ("--negative-video nix.mp4", "nix.mp4: no such file"),
        ("--negative-audio clip.mp4", "clip.mp4: "),
        ("--audio - --negative-audio -", "only one file can be read from standard input"),
    ],
)
def test_wrong_guidance(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(AudioXPipeline, "from_pretrained", lambda *a, **k: pytest.fail("a model is loaded"))
    assert main(["generate", "--model", "small", "--prompt", "a", *words.split(), "-o", "x.wav"]) == 2
    assert message in capsys.readouterr().err


def test_lines_of_a_batch_have_negatives_of_their_own(folder, tmp_path, generate):
    lines = [
        {"prompt": "a", "negative_audio": str(folder / "tone.wav")},
        {"prompt": "a", "negative_video": str(folder / "clip.mp4"), "negative_prompt": "b"},
        {"prompt": "a"},
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = f"--batch {tmp_path}/lines.jsonl --batch-size 3 --steps 2 --length 0.3 --precise --normalize --guidance 3"
    assert main(["generate", "--model", "small", *words.split(), "-o", str(tmp_path / "out")]) == 0
    negatives = [["--negative-audio", "tone.wav"], ["--negative-video", "clip.mp4", "--negative-prompt", "b"], []]
    for number, options in enumerate(negatives):
        alone = generate("--guidance", "3", "--seed", str(number), *options)
        assert torch.equal(load_audio(tmp_path / "out" / f"{number + 1:05}.wav")[0], alone)
