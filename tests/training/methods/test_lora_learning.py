"""Learning of an adapter on the embedded model. `benchmarks/adapter_learning.py` measures it at full length."""

import numpy as np
import pytest
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.media import log_mel_distance, save_audio
from audiox_diffusers.scenes import random_scene

RATE, SECONDS = 16000, 4.0
CAPTION = "a zorble"


def zorble(seed: int) -> np.ndarray:
    """Noise that grows brighter. It is dense, because silence from the VAE would dominate the distance."""
    low, high = 0.1 * np.random.default_rng(seed).standard_normal((2, round(RATE * SECONDS)))
    share = np.linspace(0, 1, len(low))
    smooth = np.convolve(low, np.hanning(16) / 4, mode="same")
    return ((1 - share) * smooth + share * high).astype(np.float32)


@pytest.fixture
def pipe() -> AudioXPipeline:
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def distance(pipe: AudioXPipeline, clips: list[tuple[str, np.ndarray]]) -> float:
    """Return the mean log-mel distance between clips and audio generated for their captions, with fixed seeds."""
    generator = [torch.Generator().manual_seed(number) for number in range(len(clips))]
    made = pipe([caption for caption, _ in clips], audio_length_in_s=SECONDS, generator=generator).audios
    return float(np.mean([log_mel_distance(sound, clip, RATE) for sound, (_, clip) in zip(made, clips)]))


@pytest.mark.slow
def test_new_sound_is_learned_and_old_ones_are_kept(train_lora, pipe, tmp_path):
    new = [(CAPTION, zorble(100 + seed)) for seed in range(4)]
    scenes = [random_scene(1000 + seed, SECONDS) for seed in range(16)]
    own = [(scene.caption(), reconstruct(pipe.vae, scene.audio(RATE))) for scene in scenes]
    weights = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    before = distance(pipe, new), distance(pipe, own)

    (tmp_path / "clips").mkdir()
    for seed in range(4):
        save_audio(tmp_path / "clips" / f"{seed}.wav", zorble(seed), RATE)
    rows = [f'{{"file_name": "{seed}.wav", "caption": "{CAPTION}"}}\n' for seed in range(4)]
    (tmp_path / "clips" / "metadata.jsonl").write_text("".join(rows))
    options = ["--pretrained_model_name_or_path", "audiox-tiny", "--dataset", tmp_path / "clips"]
    options += ["--target_modules", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    options += ["--train_batch_size", 4, "--learning_rate", 2e-3, "--lr_scheduler", "cosine"]
    options += ["--task_weights", "inpainting=0", "completion=0", "--with_prior_preservation"]
    options += ["--num_class_sounds", 16, "--class_prompt", *(random_scene(n, SECONDS).caption() for n in range(16))]
    train_lora("out", 160, *options)

    pipe.load_lora_weights(tmp_path / "out")
    after = distance(pipe, new), distance(pipe, own)
    pipe.unload_lora_weights()
    assert all(torch.equal(value, weights[key]) for key, value in pipe.transformer.state_dict().items())
    assert (distance(pipe, new), distance(pipe, own)) == before
    assert after[0] < before[0] / 3
    assert after[1] < 1.1 * before[1]
