"""A model that overfits a few clips reproduces them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import log_mel_distance, save_video
from audiox_diffusers.scenes import Event, Scene

SCENES = [
    Scene([Event("bell", start, 1.0) for start in (0.0, 1.0, 2.0, 3.0)], 4.0, seed=0),
    Scene([Event("siren", 0.0, 4.0)], 4.0, seed=1),
    Scene([Event("engine", 0.0, 4.0)], 4.0, seed=2),
    Scene([Event("rain", 0.0, 4.0)], 4.0, seed=3),
]
# What is read and seen with each sound is of the next scene, so that what the model knew before is wrong.
NEXT = SCENES[1:] + SCENES[:1]


def sound(number: int) -> np.ndarray:
    """Render a scene with noise at -50 dB, as in a recording. Everything is far from digital silence."""
    clean = SCENES[number].audio()
    return clean + 3e-3 * np.random.default_rng(number).standard_normal(clean.shape).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder, lines = tmp_path_factory.mktemp("clips"), []
    for number, other in enumerate(NEXT):
        save_video(folder / f"{number}.mp4", other.frames(fps=20, size=32), sound(number), 16000, fps=20)
        lines.append(json.dumps({"file_name": f"{number}.mp4", "caption": other.caption()}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def nearest(pipe: AudioXPipeline, **given) -> list[int]:
    """Return for each prompt the number of the scene whose sound is nearest to the generated one."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(SCENES))]
    sounds, found = [sound(number) for number in range(len(SCENES))], []
    for made in pipe(**given, generator=generators, num_inference_steps=10, guidance_scale=1.0).audios:
        distances = [log_mel_distance(made, right, pipe.vae.config.sampling_rate) for right in sounds]
        found.append(distances.index(min(distances)))
    return found


@pytest.mark.slow
def test_overfitted_clip_follows_its_caption_and_its_video(train, clips, tmp_path):
    options = ["--pretrained_model_name_or_path", "audiox-tiny", "--dataset", clips]
    options += ["--cache_latents", tmp_path / "cache"]
    options += ["--task_weights", "text_video=0", "image=0", "inpainting=0", "completion=0"]
    options += ["--drop_text_rate", 0, "--drop_video_rate", 0, "--drop_context_rate", 0]
    options += ["--mask_text_rate", 0, "--mask_video_rate", 0]
    options += ["--weighting_scheme", "logit_normal", "--logit_mean", 2, "--logit_std", 1.2]
    options += ["--train_batch_size", len(SCENES), "--learning_rate", 1e-3, "--adam_beta2", 0.98]
    options += ["--lr_scheduler", "cosine", "--lr_warmup_steps", 20]
    losses = list(train("out", 250, *options).values())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])

    pipe = AudioXPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    right = list(range(len(SCENES)))
    assert nearest(pipe, prompt=[other.caption() for other in NEXT]) == right
    assert nearest(pipe, video=[clips / f"{number}.mp4" for number in right]) == right
