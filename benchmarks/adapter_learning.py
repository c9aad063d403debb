"""
Whether an adapter learns a new sound without the base model forgetting its own:

    python benchmarks/adapter_learning.py audiox-small

The base is a pipeline that knows the sounds of `audiox_diffusers.scenes`. It is told of a sound that it does not know, a
whistle that falls and wobbles, by six clips with the caption "a zorble", while it makes sounds of its own captions for
prior preservation. Printed are the log-mel distances of what it makes to clips that were not trained on, of the new
sound and of scenes, before and after, and that unloading gives the base back to the last bit. Options that this command
does not know go to the training; those that come last hold.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import load_audio, log_mel_distance, save_audio
from audiox_diffusers.scenes import random_scene, write_scenes
from audiox_diffusers.training import LoraTuning, Trainer, parse_args

CAPTION = "a zorble"
CLIPS, SOUNDS = 6, 4


def zorble(seed: int, seconds: float, sampling_rate: int) -> np.ndarray:
    """A sine that falls from 1300 to 500 Hz while its pitch wobbles six times a second; mono, `[samples]`."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * sampling_rate)) / sampling_rate
    pitch = rng.uniform(0.97, 1.03) * (1300 - 800 * times / seconds) * (1 + 0.05 * np.sin(2 * np.pi * 6 * times))
    return (0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / sampling_rate)).astype(np.float32)


def write_zorbles(folder: Path, first: int, count: int, seconds: float, sampling_rate: int) -> Path:
    folder.mkdir()
    lines = []
    for number in range(count):
        save_audio(folder / f"{number}.wav", zorble(first + number, seconds, sampling_rate), sampling_rate)
        lines.append(f'{{"file_name": "{number}.wav", "caption": "{CAPTION}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def distance(pipe: AudioXPipeline, pairs: list[tuple[str, np.ndarray]]) -> float:
    """The mean over captions and the sounds that they stand for."""
    rate, distances = pipe.vae.config.sampling_rate, []
    for seed, (caption, sound) in enumerate(pairs):
        generator = [torch.Generator().manual_seed(seed)]
        made = pipe(caption, audio_length_in_s=sound.shape[-1] / rate, generator=generator).audios[0]
        distances.append(log_mel_distance(made, sound, rate))
    return float(np.mean(distances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder or a Hub id")
    parser.add_argument("--steps", type=int, default=400)
    options, others = parser.parse_known_args()

    pipe = AudioXPipeline.from_pretrained(options.base)
    pipe.set_progress_bar_config(disable=True)
    rate, channels = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels
    seconds = min(10.0, pipe.window_samples / rate)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = write_scenes(folder / "scenes", SOUNDS, seed=1000, seconds=seconds)
        captions = [random_scene(seed, seconds).caption() for seed in range(8)]
        own = []
        for scene, line in enumerate((scenes / "metadata.jsonl").read_text().splitlines()):
            sound, _ = load_audio(scenes / f"{scene:05}.mp4", rate, channels, duration=seconds)
            own.append((json.loads(line)["caption"], sound[:, : round(seconds * rate)].numpy()))
        new = [(CAPTION, zorble(100 + seed, seconds, rate)[None].repeat(channels, 0)) for seed in range(SOUNDS)]

        before = distance(pipe, new), distance(pipe, own)
        weights = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
        arguments = ["--pretrained_model_name_or_path", options.base, "--dataset"]
        arguments += [write_zorbles(folder / "clips", 0, CLIPS, seconds, rate), "--output_dir", folder / "adapter"]
        arguments += ["--max_train_steps", options.steps, "--train_batch_size", 4, "--learning_rate", 2e-3]
        arguments += ["--rank", 16, "--task_weights", *(f"{task}=0" for task in ("inpainting", "completion"))]
        arguments += ["--target_modules", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
        arguments += ["--with_prior_preservation", "--num_class_sounds", 32, "--class_prompt", *captions]
        arguments += ["--dataloader_num_workers", 0, "--checkpointing_steps", 10**9, *others]
        started = time.perf_counter()
        Trainer(parse_args([str(word) for word in arguments], LoraTuning), LoraTuning).train()
        took = time.perf_counter() - started

        pipe.load_lora_weights(folder / "adapter")
        after = distance(pipe, new), distance(pipe, own)
        pipe.unload_lora_weights()
    back = all(torch.equal(value, weights[key]) for key, value in pipe.transformer.state_dict().items())
    print(f"\n{options.steps} steps in {took / 60:.1f} minutes, the sounds of prior preservation among them")
    for what, first, last, goal in zip(("new sound", "own sounds"), before, after, ("below 0.33", "below 1.10")):
        print(
            f"{what}: log-mel distance {first:.3f} before, {last:.3f} after, ratio {last / first:.2f} (goal: {goal})"
        )
    print(
        f"unloaded, the base is as it was: {back}, its distances too: {(distance(pipe, new), distance(pipe, own)) == before}"
    )


if __name__ == "__main__":
    main()
