"""
Whether an adapter learns a new sound without the base model forgetting its own:

    python benchmarks/adapter_learning.py

The base is a pipeline that knows the sounds of `audiox_diffusers.scenes`, by default the small model of the package. It
is told of a sound that it does not know by six clips with the caption "a zorble", while it makes sounds of its own
captions for prior preservation. Printed are, before and after, the log-mel distances of what it makes

- for "a zorble" to clips that were not trained on,
- for captions of scenes to these scenes, and to the scenes as the VAE gives them back,

beside the floor: the distance of the same clips and scenes to themselves through the VAE. The new sound is a rush of
noise, dense in time and frequency, because the distance counts every dB, however soft: where a clip is silent, the soft
noise that a VAE leaves outweighs all else, and a model that made the clips exactly would be no nearer than another. So it
is with scenes, of which most is silence; hence the second measure of these.

Then the adapter is unloaded, after which the base should be as it was to the last bit, and fused, after which it should
make what it made before. Options that this command does not know go to the training; those that come last hold.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.embedded import EMBEDDED_MODEL
from audiox_diffusers.media import log_mel_distance, save_audio
from audiox_diffusers.scenes import random_scene
from audiox_diffusers.training import LoraTuning, Trainer, parse_args

CAPTION = "a zorble"
CLIPS, NEW, OWN = 6, 16, 48
BATCH = 8
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class Clip(NamedTuple):
    """A sound `[channels, samples]`, and what it is asked for by."""

    caption: str
    sound: np.ndarray


def zorble(seed: int, seconds: float, rate: int) -> np.ndarray:
    """Noise that rises from 300 Hz to 5 kHz, half an octave wide, above a hiss; mono float32 `[samples]`."""
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
    """The clips that are trained on."""
    folder.mkdir()
    lines = []
    for number in range(CLIPS):
        save_audio(folder / f"{number}.wav", zorble(number, seconds, rate), rate)
        lines.append(f'{{"file_name": "{number}.wav", "caption": "{CAPTION}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def make(pipe: AudioXPipeline, captions: list[str], seconds: float, **options) -> list[np.ndarray]:
    """A sound for each caption, always from the same noises."""
    sounds = []
    for first in range(0, len(captions), BATCH):
        batch = captions[first : first + BATCH]
        generator = [torch.Generator().manual_seed(first + number) for number in range(len(batch))]
        sounds += list(pipe(batch, audio_length_in_s=seconds, generator=generator, **options).audios)
    return sounds


def through_vae(pipe: AudioXPipeline, clips: list[Clip]) -> list[Clip]:
    """The clips as the VAE gives them back."""
    return [Clip(clip.caption, reconstruct(pipe.vae, clip.sound)) for clip in clips]


def distance(sounds: list[np.ndarray], clips: list[Clip], rate: int) -> float:
    """The mean log-mel distance of sounds to the clips in the same places."""
    return float(
        np.mean([log_mel_distance(sound, clip.sound, rate) for sound, clip in zip(sounds, clips, strict=True)])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default=EMBEDDED_MODEL, help="a folder or a Hub id")
    parser.add_argument("--steps", type=int, default=800)
    options, others = parser.parse_known_args()

    pipe = AudioXPipeline.from_pretrained(options.base)
    pipe.set_progress_bar_config(disable=True)
    rate, channels = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels
    seconds = min(10.0, pipe.window_samples / rate)
    new = [Clip(CAPTION, zorble(100 + seed, seconds, rate)[None].repeat(channels, 0)) for seed in range(NEW)]
    scenes = [random_scene(1000 + seed, seconds) for seed in range(OWN)]
    own = [Clip(scene.caption(), scene.audio(rate).repeat(channels, 0)) for scene in scenes]
    new_back, own_back = through_vae(pipe, new), through_vae(pipe, own)

    def distances() -> list[float]:
        made_new, made_own = (make(pipe, [clip.caption for clip in clips], seconds) for clips in (new, own))
        return [distance(made_new, new, rate), distance(made_own, own, rate), distance(made_own, own_back, rate)]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = distances()
        weights = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
        arguments = ["--pretrained_model_name_or_path", options.base, "--dataset"]
        arguments += [write_zorbles(folder / "clips", seconds, rate), "--output_dir", folder / "adapter"]
        arguments += ["--max_train_steps", options.steps, "--train_batch_size", 4]
        arguments += ["--learning_rate", 2e-3, "--lr_scheduler", "cosine"]
        arguments += ["--rank", 16, "--target_modules", *TARGETS]
        arguments += ["--task_weights", *(f"{task}=0" for task in ("inpainting", "completion"))]
        arguments += ["--with_prior_preservation", "--num_class_sounds", 32, "--class_prompt"]
        arguments += [random_scene(seed, seconds).caption() for seed in range(32)]
        arguments += ["--dataloader_num_workers", 0, "--checkpointing_steps", 10**9, *others]
        started = time.perf_counter()
        Trainer(parse_args([str(word) for word in arguments], LoraTuning), LoraTuning).train()
        took = time.perf_counter() - started
        pipe.load_lora_weights(folder / "adapter")
        after = distances()
        pipe.unload_lora_weights()
        back = all(torch.equal(value, weights[key]) for key, value in pipe.transformer.state_dict().items())
        again = distances() == before
        pipe.load_lora_weights(folder / "adapter")
        loose = torch.stack(make(pipe, [CAPTION] * BATCH, seconds, output_type="latent"))
        pipe.fuse_lora()
        fused = torch.stack(make(pipe, [CAPTION] * BATCH, seconds, output_type="latent"))

    print(f"\n{options.steps} steps in {took / 60:.1f} minutes, the sounds of prior preservation among them")
    names = ("new sound", "own captions", "own captions, to scenes through the VAE")
    pairs = ((new_back, new), (own_back, own))
    floors = [distance([clip.sound for clip in found], clips, rate) for found, clips in pairs]
    for what, first, last, floor, goal in zip(names, before, after, [*floors, 0.0], (0.33, 1.1, 1.1)):
        print(
            f"{what}: log-mel distance {first:.3f} before, {last:.3f} after, ratio {last / first:.3f}"
            f" (goal: below {goal:g}), floor {floor:.3f}"
        )
    print(f"unloaded, the base is as it was: {back}, its distances too: {again}")
    print(f"fused, latents of about 1 change by at most {(fused - loose).abs().max():.1e} (goal: below 1e-4)")


if __name__ == "__main__":
    main()
