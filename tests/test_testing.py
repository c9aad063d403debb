"""The small pipelines for tests, tutorials and benchmarks."""

import importlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, seeded

from audiox_diffusers import AudioXPipeline, testing
from audiox_diffusers.cli import main
from audiox_diffusers.media import save_video
from audiox_diffusers.scenes import random_scene
from audiox_diffusers.testing import create_random_pipeline, create_small_pipeline


@pytest.fixture(scope="module")
def small():
    pipe = create_small_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_the_vae_restores_sounds(small):
    sound = torch.rand(1, 1, small.window_samples, generator=seeded()) - 0.5
    latents = small.vae.encode(sound).latent_dist
    assert latents.mean.shape == (1, 128, 125) and latents.std.max() < 2e-4
    error = (small.vae.decode(latents.mode()).sample - sound)[..., 64:-64]
    assert error.abs().max() < 1e-4


@torch.no_grad()
def test_captions_and_videos_are_told_apart(small):
    scenes = [random_scene(seed, seconds=2.0) for seed in range(6)]
    texts = small.encode_prompt([scene.caption() for scene in scenes])[0]
    videos = small.encode_video([torch.from_numpy(scene.frames(5, 32)).permute(0, 3, 1, 2) for scene in scenes])
    for embeds in (texts, videos):
        centred = (embeds - embeds.mean(0)).flatten(1)
        similarity = F.cosine_similarity(centred[:, None], centred[None], dim=-1)
        assert similarity[~torch.eye(6, dtype=torch.bool)].max() < 0.9


def test_saving_and_loading(small, tmp_path):
    small.save_pretrained(tmp_path)
    loaded = AudioXPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    first, second = (pipe("a bell", num_inference_steps=2, generator=seeded()).audios for pipe in (small, loaded))
    assert first.shape == (1, 1, 16000)
    assert_equal(first, second)


@pytest.fixture(scope="module")
def random_pipe():
    pipe = create_random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_random_pipeline_has_the_released_shapes(random_pipe, manifest):
    config, tensors = manifest
    assert random_pipe.vae.hop_length == config["model"]["pretransform"]["config"]["downsampling_ratio"]
    assert random_pipe.vae.config.sampling_rate == config["sample_rate"]
    assert random_pipe.transformer.config.sample_size == config["sample_size"] // random_pipe.vae.hop_length
    conditioner = random_pipe.conditioner
    for name, key in (
        ("video_proj", "video_prompt.empty_visual_feat"),
        ("audio_proj", "audio_prompt.empty_audio_feat"),
    ):
        empty = getattr(conditioner, name).empty_embedding
        assert empty.shape[1] == tensors[f"conditioner.conditioners.{key}"].shape[1]
    assert conditioner.config.num_text_tokens == random_pipe.tokenizer.model_max_length == 128


def test_seed_decides_the_weights_and_leaves_the_global_state_alone(random_pipe):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again, other = create_random_pipeline(), create_random_pipeline(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("transformer", "conditioner", "vae", "text_encoder", "image_encoder"):
        weights, same, different = (getattr(pipe, name).state_dict() for pipe in (random_pipe, again, other))
        assert all(torch.equal(weights[key], same[key]) for key in weights)
        assert any(not torch.equal(weights[key], different[key]) for key in weights)


def test_noise_has_a_moderate_level(random_pipe):
    generator = [seeded()]
    (audio,) = random_pipe("a dog", num_inference_steps=8, generator=generator).audios
    assert audio.shape == (2, 441000)
    assert 0.02 < audio.std() < 0.3 and np.abs(audio).max() <= 1 and np.abs(audio.mean(axis=1)).max() < 0.02


def test_sound_is_as_long_as_a_short_video(tmp_path, capsys):
    create_random_pipeline().save_pretrained(tmp_path / "model")
    save_video(tmp_path / "short.mp4", np.zeros((45, 32, 48, 3), np.uint8) + 99, fps=30)
    command = ["generate", "--model", tmp_path / "model", "--video", tmp_path / "short.mp4", "--steps", 1, "-o"]
    assert main([str(word) for word in [*command, tmp_path / "sound.mp4"]]) == 0
    assert "1.50 s of stereo sound" in capsys.readouterr().out
    assert main([str(word) for word in [*command, tmp_path / "sound.wav"]]) == 0
    assert "10.00 s of stereo sound" in capsys.readouterr().out


def test_deprecated_modules():
    for module, names in {
        "small_model": ("create_small_pipeline", "create_tokenizer", "SAMPLING_RATE"),
        "random_model": ("create_random_pipeline", "create_tokenizer"),
    }.items():
        sys.modules.pop(f"audiox_diffusers.{module}", None)
        with pytest.warns(DeprecationWarning, match="use audiox_diffusers.testing"):
            deprecated = importlib.import_module(f"audiox_diffusers.{module}")
        assert all(getattr(deprecated, name) is getattr(testing, name) for name in names)
