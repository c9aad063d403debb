import numpy as np
import pytest
import torch

from audiox_diffusers.cli import main
from audiox_diffusers.media import save_video
from audiox_diffusers.random_model import create_random_pipeline


@pytest.fixture(scope="module")
def random_pipe():
    pipe = create_random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_has_the_released_shapes(random_pipe, manifest):
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


def test_same_seed_same_weights_and_global_state_untouched(random_pipe):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again, other = create_random_pipeline(), create_random_pipeline(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("transformer", "conditioner", "vae", "text_encoder", "image_encoder"):
        weights, same, different = (getattr(pipe, name).state_dict() for pipe in (random_pipe, again, other))
        assert all(torch.equal(weights[key], same[key]) for key in weights)
        assert any(not torch.equal(weights[key], different[key]) for key in weights)


def test_noise_has_a_moderate_level(random_pipe):
    generator = [torch.Generator().manual_seed(0)]
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
