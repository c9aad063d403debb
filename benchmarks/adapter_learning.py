"""
Test whether an adapter learns a new sound without the base model forgetting others:

    python benchmarks/adapter_learning.py

The base is a pipeline that knows the sounds of `audiox_diffusers.scenes`, by default audiox-tiny. The adapter is trained
on six clips of a new sound with the caption "a zorble", with prior preservation for the base model's captions. The
benchmark prints log-mel distances before and after training:

- of sounds for "a zorble" to held-out clips,
- of sounds for captions of scenes to these scenes, and to their reconstruction by the VAE.

Beside them is the lower limit, the distance between the clips and their reconstruction by the VAE. The new sound is dense
noise without silence: the distance counts soft and loud levels alike, so in silent parts the soft noise of the VAE would
outweigh everything else. Scenes are mostly silent, hence their second distance.

Then the adapter is unloaded, which should restore the base exactly, and fused, which should not change its output.
Unknown options are passed to the training and override its defaults.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import create_parser, quiet
from training_runs import BATCH, TARGETS, Clip, create_trainer, distance_to_clips, generate

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.embedded import EMBEDDED_MODEL
from audiox_diffusers.media import save_audio
from audiox_diffusers.scenes import random_scene
from audiox_diffusers.training import LoraTraining

CAPTION = "a zorble"
CLIPS, NEW, OWN = 6, 16, 48


def zorble(seed: int, seconds: float, rate: int) -> np.ndarray:
    """Return noise of half an octave that rises from 300 Hz to 5 kHz, with a hiss; mono float32 `[samples]`."""
    rng = np.random.default_rng(seed)
    count, hop = round(seconds * rate), 256
    frames = count // hop + 1
    spectrum = np.fft.rfft(rng.standard_normal((frames, 2 * hop)))
    bins = np.log2(np.maximum(np.fft.rfftfreq(2 * hop, 1 / rate), 1))
    centre = np.log2(300) + np.log2(5000 / 300) * np.linspace(0, 1, frames) + rng.uniform(-0.1, 0.1)
    levels = np.exp(-(((bins - centre[:, None]) / 0.5) ** 2) / 2) + 0.1
    pieces = np.fft.irfft(levels * spectrum) * np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))
    sound = np.zeros((frames + 1) * hop)
    for frame, piece in enumerate(pieces):
        sound[frame * hop : frame * hop + 2 * hop] += piece
    return (0.9 * sound[:count] / np.abs(sound[:count]).max()).astype(np.float32)


def write_zorbles(folder: Path, seconds: float, rate: int) -> Path:
    """Write the training clips."""
    folder.mkdir()
    lines = []
    for number in range(CLIPS):
        save_audio(folder / f"{number}.wav", zorble(number, seconds, rate), rate)
        lines.append(f'{{"file_name": "{number}.wav", "caption": "{CAPTION}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def through_vae(pipe: AudioXPipeline, clips: list[Clip]) -> list[Clip]:
    """Return the clips after the VAE."""
    return [Clip(clip.caption, reconstruct(pipe.vae, clip.sound)) for clip in clips]


def distance(sounds: list[np.ndarray], clips: list[Clip], rate: int) -> float:
    return float(distance_to_clips(sounds, clips, rate).mean())


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument(
        "base", nargs="?", default=EMBEDDED_MODEL, help="name, folder or Hub id of the base (default: audiox-tiny)"
    )
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: 800)")
    options, others = parser.parse_known_args()

    pipe = quiet(AudioXPipeline.from_pretrained(options.base))
    rate, channels = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels
    seconds = min(10.0, pipe.window_samples / rate)
    new = [Clip(CAPTION, zorble(100 + seed, seconds, rate)[None].repeat(channels, 0)) for seed in range(NEW)]
    scenes = [random_scene(1000 + seed, seconds) for seed in range(OWN)]
    own = [Clip(scene.caption(), scene.audio(rate).repeat(channels, 0)) for scene in scenes]
    new_back, own_back = through_vae(pipe, new), through_vae(pipe, own)

    def distances() -> list[float]:
        made_new, made_own = (generate(pipe, [clip.caption for clip in clips], seconds) for clips in (new, own))
        return [distance(made_new, new, rate), distance(made_own, own, rate), distance(made_own, own_back, rate)]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = distances()
        weights = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
        training = {
            "pretrained_model_name_or_path": options.base,
            "dataset": write_zorbles(folder / "clips", seconds, rate),
            "output_dir": folder / "adapter",
            "max_train_steps": options.steps,
            "train_batch_size": 4,
            "learning_rate": 2e-3,
            "lr_scheduler": "cosine",
            "rank": 16,
            "target_modules": TARGETS,
            "task_weights": ["inpainting=0", "completion=0"],
            "num_class_sounds": 32,
            "class_prompt": [random_scene(seed, seconds).caption() for seed in range(32)],
        }
        started = time.perf_counter()
        create_trainer(training, ["--with_prior_preservation", *others], LoraTraining).train()
        took = time.perf_counter() - started
        pipe.load_lora_weights(folder / "adapter")
        after = distances()
        pipe.unload_lora_weights()
        back = all(torch.equal(value, weights[key]) for key, value in pipe.transformer.state_dict().items())
        again = distances() == before
        pipe.load_lora_weights(folder / "adapter")
        loose = torch.stack(generate(pipe, [CAPTION] * BATCH, seconds, output_type="latent"))
        pipe.fuse_lora()
        fused = torch.stack(generate(pipe, [CAPTION] * BATCH, seconds, output_type="latent"))

    print(f"\n{options.steps} steps in {took / 60:.1f} minutes, including the sounds for prior preservation")
    names = ("new sound", "scenes", "scenes after the VAE")
    pairs = ((new_back, new), (own_back, own))
    floors = [distance([clip.sound for clip in decoded], clips, rate) for decoded, clips in pairs]
    for what, first, last, floor, goal in zip(names, before, after, [*floors, 0.0], (0.33, 1.1, 1.1)):
        print(
            f"{what}: log-mel distance {first:.3f} before, {last:.3f} after, ratio {last / first:.3f}"
            f" (goal: below {goal:g}), lower limit {floor:.3f}"
        )
    print(f"weights are the same after unloading: {back}, distances too: {again}")
    print(f"fusing changes latents of about 1 by at most {(fused - loose).abs().max():.1e} (goal: below 1e-4)")


if __name__ == "__main__":
    main()
