"""
What masked training is worth: audiox-tiny, trained on with it and without it, and asked with modalities missing.

`python benchmarks/masking_ablation.py` renders scenes, or takes those that it has rendered to `--scenes`. It goes on with
the training of audiox-tiny twice, with the same seed, records, noises and times: with all tasks and rates as they are by
default, and on text and video together, never hidden but for guidance. Then it asks both for scenes that neither has
seen, by text and video, by one of them, and by nothing. Printed are tables of the loss at times where prompts matter, of
the log-mel distance of made sounds to the true ones, and of how much both rise by what is missing; all with the standard
error over the scenes. Options that this command does not know go to both trainings; those that come last hold:
`--from_scratch` starts both from the same random weights.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import load_audio, log_mel_distance
from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.training import Trainer, parse_args
from audiox_diffusers.training.data.masking import TASKS
from audiox_diffusers.training.objective import VelocityObjective, diffusion_loss

CLASSES = ("bell", "drum", "rain", "siren")
SECONDS, TRAINED, UNSEEN, MADE = 4.0, 512, 64, 16
TIMES = (0.8, 0.9, 0.95, 0.99)

HIDDEN = ("drop_text_rate", "drop_video_rate", "drop_audio_rate", "mask_text_rate", "mask_video_rate")
RUNS = {
    "with": [],
    "without": [
        *("--task_weights", *(f"{task}=0" for task in TASKS if task != "text_video")),
        *(word for name in HIDDEN for word in (f"--{name}", "0")),
    ],
}

# Whether text and video are given.
PROMPTS = {"text and video": (True, True), "text": (True, False), "video": (False, True), "nothing": (False, False)}


@dataclass
class Clip:
    """A scene that was not trained on; `sound` is `[channels, samples]`."""

    caption: str
    video: Path
    sound: torch.Tensor


def render(folder: Path, count: int, seed: int) -> Path:
    return folder if folder.exists() else write_scenes(folder, count, seed, SECONDS, fps=20, size=32, classes=CLASSES)


def train(folder: Path, scenes: Path, run: str, steps: int, others: list[str]) -> AudioXPipeline:
    """The pipeline after `steps`."""
    arguments = ["--pretrained_model_name_or_path", "audiox-tiny", "--dataset", scenes]
    arguments += ["--cache_latents", folder / "cache", "--output_dir", folder / run, "--max_train_steps", steps]
    arguments += ["--train_batch_size", 8, "--learning_rate", 1e-3, "--adam_beta2", 0.98]
    arguments += ["--weighting_scheme", "logit_normal", "--logit_mean", 2, "--logit_std", 1.2]
    arguments += ["--lr_scheduler", "cosine", "--lr_warmup_steps", 50]
    arguments += ["--dataloader_num_workers", 0, "--checkpointing_steps", 10**9]
    Trainer(parse_args([*map(str, arguments), *RUNS[run], *others])).train()
    return AudioXPipeline.from_pretrained(folder / run)


def read_clips(folder: Path, pipe: AudioXPipeline) -> list[Clip]:
    rate, channels, clips = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels, []
    for line in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines()):
        sound, _ = load_audio(folder / line["file_name"], rate, channels, duration=SECONDS)
        clips.append(Clip(line["caption"], folder / line["file_name"], sound[:, : pipe.window_samples]))
    return clips


def given(clips: list[Clip], text: bool, video: bool) -> dict[str, list]:
    """Arguments of the pipeline. It wants something of each sample: the empty text is nothing."""
    prompts = [clip.caption for clip in clips] if text else [None if video else ""] * len(clips)
    return {"prompt": prompts, **({"video": [clip.video for clip in clips]} if video else {})}


@torch.no_grad()
def losses(pipe: AudioXPipeline, clips: list[Clip], text: bool, video: bool) -> np.ndarray:
    """The loss of each clip, mean over `TIMES`, with the same noises whatever the model and the prompt: `[clips]`."""
    objective, generator = VelocityObjective(), torch.Generator().manual_seed(0)
    context = pipe.encode_conditions(**given(clips, text, video))
    latents = pipe.vae.encode(torch.stack([clip.sound for clip in clips])).latent_dist.mode()
    found = []
    for value in TIMES:
        noise, timestep = torch.randn(latents.shape, generator=generator), torch.full((len(clips),), value)
        noised = objective.add_noise(latents, noise, timestep)
        prediction = pipe.transformer(noised, timestep, context, return_dict=False)[0]
        found.append(diffusion_loss(prediction, objective.target(latents, noise, timestep)))
    return torch.stack(found).mean(0).numpy()


def distances(pipe: AudioXPipeline, clips: list[Clip], text: bool, video: bool) -> np.ndarray:
    """The log-mel distance of a sound that the model makes to that of each clip: `[clips]`."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(clips))]
    made = pipe(**given(clips, text, video), generator=generators).audios
    rate = pipe.vae.config.sampling_rate
    return np.array([log_mel_distance(sound, clip.sound, rate) for sound, clip in zip(made, clips, strict=True)])


def mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def print_table(measure: str, found: dict[str, dict[str, np.ndarray]]) -> None:
    """`found` holds a value for each clip, by run and prompt. Differences are taken clip by clip."""
    print(f"\n| {measure} | with | without | without - with | rise, with | rise, without |\n|{'---|' * 6}")
    for prompt in PROMPTS:
        values = [found[run][prompt] for run in RUNS]
        rises = [
            "" if prompt == "text and video" else mean(found[run][prompt] - found[run]["text and video"])
            for run in RUNS
        ]
        print("| " + " | ".join([prompt, *map(mean, values), mean(values[1] - values[0]), *rises]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, help="a folder for the scenes, rendered there unless they are there")
    parser.add_argument("--steps", type=int, default=600)
    options, others = parser.parse_known_args()
    started = time.perf_counter()
    loss, distance = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = options.scenes or folder / "scenes"
        trained, unseen = render(scenes / "trained", TRAINED, seed=0), render(scenes / "unseen", UNSEEN, seed=1)
        for run in RUNS:
            pipe = train(folder, trained, run, options.steps, others)
            pipe.set_progress_bar_config(disable=True)
            clips = read_clips(unseen, pipe)
            loss[run] = {prompt: losses(pipe, clips, *has) for prompt, has in PROMPTS.items()}
            distance[run] = {prompt: distances(pipe, clips[:MADE], *has) for prompt, has in PROMPTS.items()}
    print(
        f"{options.steps} steps each, {TRAINED} scenes to train on; {(time.perf_counter() - started) / 60:.0f} minutes"
    )
    print_table(f"loss, {UNSEEN} scenes", loss)
    print_table(f"log-mel distance, {MADE} scenes", distance)


if __name__ == "__main__":
    main()
