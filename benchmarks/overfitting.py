"""
Overfit audiox-tiny to a few dozen clips and generate each of them, to test whether training learns:

    python benchmarks/overfitting.py videos sounds

The arguments are dataset folders with `metadata.jsonl`, one for videos and one for sounds. Training uses captions alone and
videos alone without masking, at times close to noise, where the prompt decides. The benchmark prints the loss at the start
and at the end. For sounds generated from captions and from videos, before and after training, it prints how many are closer
in log-mel distance to the right clip than to any other, and the mean distances, over the length of the right clip. Sounds
are generated without guidance. Unknown options are passed to the training and override its defaults.
"""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from common import create_parser, quiet, seeded
from training_runs import Clip, create_trainer, cut, distances, read_clips

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.training.arguments import TASKS
from audiox_diffusers.training.export import read_log
from audiox_diffusers.training.run.log import LOG

TRAINED = ("text", "video")
HIDING = ("drop_text_rate", "drop_video_rate", "mask_text_rate", "mask_video_rate", "drop_context_rate")
MEAN_OF = 20  # steps that the printed losses are averaged over


def train(
    model: str, folders: list[Path], counts: list[int], output: Path, steps: int, others: list[str]
) -> list[float]:
    """Train and return the loss of each step."""
    training = {
        "pretrained_model_name_or_path": model,
        "output_dir": output,
        "cache_latents": output / "cache",
        "dataset": folders,
        "dataset_weights": counts,
        "crop": "start",
        "max_train_steps": steps,
        "task_weights": [f"{task}={int(task in TRAINED)}" for task in TASKS],
        **dict.fromkeys(HIDING, 0),
        "weighting_scheme": "logit_normal",
        "logit_mean": 2,
        "logit_std": 1.2,
        "train_batch_size": 8,
        "learning_rate": 1.5e-3,
        "adam_beta2": 0.98,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 20,
    }
    create_trainer(training, others).train()
    return [report["loss"] for report in read_log(output / LOG)]


def generate(pipe: AudioXPipeline, clips: list[Clip], text: bool) -> np.ndarray:
    """Generate a sound for each caption or video, shape `[clips, channels, window_samples]`."""
    prompts = {"prompt": [clip.caption for clip in clips]} if text else {"video": [clip.video for clip in clips]}
    return pipe(**prompts, generator=seeded(range(len(clips))), guidance_scale=1.0).audios


def distance_matrix(sounds: Iterable[np.ndarray], right: list[Clip], clips: list[Clip], rate: int) -> torch.Tensor:
    """Return the log-mel distance of each sound to each clip, over the length of its right clip: `[sounds, clips]`."""
    pairs = zip(sounds, right, strict=True)
    return torch.tensor([distances(sound, clips, target.sound.shape[1], rate) for sound, target in pairs])


def print_row(name: str, found: torch.Tensor, rows: list[int]) -> None:
    """Print a summary of a [`distance_matrix`], of which `found[i, rows[i]]` is that to the right clip."""
    right = torch.zeros_like(found, dtype=torch.bool)
    right[range(len(rows)), rows] = True
    nearest = int((found.argmin(1) == torch.tensor(rows)).sum())
    print(f"| {name} | {nearest} of {len(rows)} | {found[right].mean():.2f} | {found[~right].mean():.2f} |")


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="dataset folders with metadata.jsonl")
    parser.add_argument("--model", default="audiox-tiny", help="name, folder or Hub id (default: audiox-tiny)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    options, others = parser.parse_known_args()

    before = quiet(AudioXPipeline.from_pretrained(options.model))
    sets = [read_clips(folder, before) for folder in options.folders]
    clips = [clip for found in sets for clip in found]
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        counts = [len(found) for found in sets]
        losses = train(options.model, options.folders, counts, Path(name), options.steps, others)
        minutes = (time.perf_counter() - started) / 60
        after = quiet(AudioXPipeline.from_pretrained(name))

    first, last = (sum(part) / len(part) for part in (losses[:MEAN_OF], losses[-MEAN_OF:]))
    print(f"\n{len(clips)} clips, {len(losses)} steps in {minutes:.1f} minutes, including encoding and saving")
    print(f"loss, mean of {MEAN_OF} steps: {first:.3f} first, {last:.3f} last, ratio {last / first:.2f}\n")
    print("| prompt | right clip is nearest | distance to it | to the others |\n|---|---|---|---|")
    rate, everything = after.vae.config.sampling_rate, list(range(len(clips)))
    filmed = [row for row in everything if clips[row].video is not None]
    for when, pipe in (("before", before), ("after", after)):
        for what, rows in (("caption", everything), ("video", filmed)):
            if rows:
                right = [clips[row] for row in rows]
                sounds = generate(pipe, right, what == "caption")
                print_row(f"{what} alone, {when}", distance_matrix(sounds, right, clips, rate), rows)
    reconstructed = [reconstruct(after.vae, cut(clip.sound, after.window_samples)) for clip in clips]
    print_row("the clips, after the VAE", distance_matrix(reconstructed, clips, clips, rate), everything)


if __name__ == "__main__":
    main()
