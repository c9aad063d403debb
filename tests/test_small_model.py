import pytest
import torch
import torch.nn.functional as F

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.scenes import random_scene
from audiox_diffusers.small_model import create_small_pipeline


@pytest.fixture(scope="module")
def small():
    pipe = create_small_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_the_vae_gives_sounds_back(small):
    sound = torch.rand(1, 1, small.window_samples, generator=torch.Generator().manual_seed(0)) - 0.5
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


def test_it_comes_back_from_a_folder(small, tmp_path):
    small.save_pretrained(tmp_path)
    loaded = AudioXPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    first, second = (
        pipe("a bell", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).audios
        for pipe in (small, loaded)
    )
    assert first.shape == (1, 1, 16000) and (first == second).all()
