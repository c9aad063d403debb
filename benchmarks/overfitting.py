"""
Whether training learns what it is shown: audiox-tiny overfits a few dozen clips, and is then asked for each of them.

`python benchmarks/overfitting.py videos sounds` takes folders of clips with `metadata.jsonl`, videos and sounds, each
in a folder of its own. Trained is on captions alone and on videos alone, with nothing hidden, at times near
to noise, where all has to come from the prompt. Printed are the loss at the start and at the end, and for the sounds
that are made of the captions alone, and of the videos alone, before and after, how many are nearer to the right clip
than to any other, by log-mel distance over the seconds that the right one lasts, and the mean distances. Sounds are
made without guidance. Options that this command does not know go to the training; those that come last hold.
"""

import argparse
import json
import mimetypes
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.media import load_audio, log_mel_distance
from audiox_diffusers.training import Trainer, parse_args
from audiox_diffusers.training.data.masking import TASKS
from audiox_diffusers.training.export import read_log
from audiox_diffusers.training.log import LOG

TRAINED = ("text", "video")
HIDING = ("drop_text_rate", "drop_video_rate", "mask_text_rate", "mask_video_rate", "drop_context_rate")
MEAN_OF = 20  # steps


@dataclass
class Clip:
    """One that is trained on; `sound` is `[channels, window_samples]`, silent after the `samples` that it lasts."""

    caption: str
    video: Path | None
    sound: torch.Tensor
    samples: int


def read_clips(folder: Path, pipe: AudioXPipeline) -> list[Clip]:
    rate, channels, clips = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels, []
    for line in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines()):
        path = folder / line["file_name"]
        sound, _ = load_audio(path, rate, channels, duration=pipe.window_samples / rate)
        samples = min(sound.shape[1], pipe.window_samples)
        sound = F.pad(sound[:, :samples], (0, pipe.window_samples - samples))
        is_video = mimetypes.guess_type(path)[0].startswith("video")
        clips.append(Clip(line["caption"], path if is_video else None, sound, samples))
    return clips


def train(
    model: str, folders: list[Path], counts: list[int], output: Path, steps: int, others: list[str]
) -> list[float]:
    """The losses, by step."""
    arguments = ["--pretrained_model_name_or_path", model, "--output_dir", output, "--cache_latents", output / "cache"]
    arguments += ["--dataset", *folders, "--dataset_weights", *counts, "--crop", "start", "--max_train_steps", steps]
    arguments += ["--task_weights", *(f"{task}={int(task in TRAINED)}" for task in TASKS)]
    arguments += [word for name in HIDING for word in (f"--{name}", 0)]
    arguments += ["--weighting_scheme", "logit_normal", "--logit_mean", 2, "--logit_std", 1.2]
    arguments += ["--train_batch_size", 8, "--learning_rate", 1.5e-3, "--adam_beta2", 0.98]
    arguments += ["--lr_scheduler", "cosine", "--lr_warmup_steps", 20]
    arguments += ["--dataloader_num_workers", 0, "--checkpointing_steps", 10**9]
    Trainer(parse_args([*map(str, arguments), *others])).train()
    return [report["loss"] for report in read_log(output / LOG)]


def make(pipe: AudioXPipeline, asked: list[Clip], text: bool) -> np.ndarray:
    """The sounds that the caption or the video of each clip asks for: `[asked, channels, window_samples]`."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(asked))]
    given = {"prompt": [clip.caption for clip in asked]} if text else {"video": [clip.video for clip in asked]}
    return pipe(**given, generator=generators, guidance_scale=1.0).audios


def distances(made: Iterable[np.ndarray], asked: list[Clip], clips: list[Clip], sampling_rate: int) -> torch.Tensor:
    """From what is made for each asked clip to each clip, over the seconds that the asked one lasts: `[asked, clips]`."""
    rows = []
    for sound, right in zip(made, asked, strict=True):
        part = slice(right.samples)
        rows.append([log_mel_distance(sound[:, part], clip.sound[:, part], sampling_rate) for clip in clips])
    return torch.tensor(rows)


def print_row(name: str, found: torch.Tensor, rows: list[int]) -> None:
    """`found` is of [`distances`]: `found[i, rows[i]]` is that to the right clip."""
    right = torch.zeros_like(found, dtype=torch.bool)
    right[range(len(rows)), rows] = True
    nearest = int((found.argmin(1) == torch.tensor(rows)).sum())
    print(f"| {name} | {nearest} of {len(rows)} | {found[right].mean():.2f} | {found[~right].mean():.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="clips of one kind, with metadata.jsonl")
    parser.add_argument("--model", default="audiox-tiny", help="a name, a folder or a Hub id")
    parser.add_argument("--steps", type=int, default=1000)
    options, others = parser.parse_known_args()

    before = AudioXPipeline.from_pretrained(options.model)
    sets = [read_clips(folder, before) for folder in options.folders]
    clips = [clip for found in sets for clip in found]
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        counts = [len(found) for found in sets]
        losses = train(options.model, options.folders, counts, Path(name), options.steps, others)
        minutes = (time.perf_counter() - started) / 60
        after = AudioXPipeline.from_pretrained(name)

    first, last = (sum(part) / len(part) for part in (losses[:MEAN_OF], losses[-MEAN_OF:]))
    print(f"\n{len(clips)} clips, {len(losses)} steps in {minutes:.1f} minutes, encoding and saving among them")
    print(f"loss, mean of {MEAN_OF} steps: {first:.3f} first, {last:.3f} last, ratio {last / first:.2f}\n")
    print("| asked by | right clip is nearest | distance to it | to the others |\n|---|---|---|---|")
    rate, everything = after.vae.config.sampling_rate, list(range(len(clips)))
    filmed = [row for row in everything if clips[row].video is not None]
    for when, pipe in (("before", before), ("after", after)):
        pipe.set_progress_bar_config(disable=True)
        for what, rows in (("caption", everything), ("video", filmed)):
            if rows:
                asked = [clips[row] for row in rows]
                print_row(
                    f"{what} alone, {when}", distances(make(pipe, asked, what == "caption"), asked, clips, rate), rows
                )
    through_vae = [reconstruct(after.vae, clip.sound.numpy()) for clip in clips]
    print_row("the clips, through the VAE", distances(through_vae, clips, clips, rate), everything)


if __name__ == "__main__":
    main()
