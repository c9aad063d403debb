"""
Measure the effect of masked training on prompts with missing modalities:

    python benchmarks/masking_ablation.py [--scenes FOLDER] [--steps 600]

The benchmark renders scenes and trains audiox-tiny on them twice with the same seed: once with the default tasks and
masking rates, and once with text and video always given, dropped together only for guidance. Then it generates held-out
scenes with both models, from text and video, from either, and from nothing. It prints the loss at times where prompts
matter, the log-mel distance between generated and true sounds, and how much both rise when a modality is missing, with the
standard error over the scenes. Unknown options are passed to both trainings and override their defaults; `--from_scratch`
starts both from the same random weights.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import create_parser, quiet, seeded
from training_runs import Clip, create_trainer, distance_to_clips, read_clips

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.training.arguments import TASKS
from audiox_diffusers.training.objective import VelocityObjective, diffusion_loss

CLASSES = ("bell", "drum", "rain", "siren")
SECONDS, TRAINED, HELD_OUT, GENERATED = 4.0, 512, 64, 16
TIMES = (0.8, 0.9, 0.95, 0.99)

HIDDEN = ("drop_text_rate", "drop_video_rate", "drop_audio_rate", "mask_text_rate", "mask_video_rate")
RUNS = {
    "with": [],
    "without": [
        *("--task_weights", *(f"{task}=0" for task in TASKS if task != "text_video")),
        *(word for name in HIDDEN for word in (f"--{name}", "0")),
    ],
}

# Text given, video given.
PROMPTS = {"text and video": (True, True), "text": (True, False), "video": (False, True), "nothing": (False, False)}


def render(folder: Path, count: int, seed: int) -> Path:
    return folder if folder.exists() else write_scenes(folder, count, seed, SECONDS, fps=20, size=32, classes=CLASSES)


def train(folder: Path, scenes: Path, run: str, steps: int, others: list[str]) -> AudioXPipeline:
    """Train audiox-tiny and return the trained pipeline."""
    training = {
        "pretrained_model_name_or_path": "audiox-tiny",
        "dataset": scenes,
        "cache_latents": folder / "cache",
        "output_dir": folder / run,
        "max_train_steps": steps,
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "adam_beta2": 0.98,
        "weighting_scheme": "logit_normal",
        "logit_mean": 2,
        "logit_std": 1.2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 50,
    }
    create_trainer(training, [*RUNS[run], *others]).train()
    return quiet(AudioXPipeline.from_pretrained(folder / run))


def prompts_of(clips: list[Clip], text: bool, video: bool) -> dict[str, list]:
    """Return the arguments of the pipeline. An empty text stands for no prompt."""
    prompts = [clip.caption for clip in clips] if text else [None if video else ""] * len(clips)
    return {"prompt": prompts, **({"video": [clip.video for clip in clips]} if video else {})}


@torch.no_grad()
def losses(pipe: AudioXPipeline, clips: list[Clip], text: bool, video: bool) -> np.ndarray:
    """Return the loss of each clip, averaged over `TIMES`, with the same noise for all models, shape `[clips]`."""
    objective, (generator,) = VelocityObjective(), seeded([0])
    context = pipe.encode_conditions(**prompts_of(clips, text, video))
    latents = pipe.vae.encode(torch.from_numpy(np.stack([clip.sound for clip in clips]))).latent_dist.mode()
    values = []
    for time_left in TIMES:
        noise, timestep = torch.randn(latents.shape, generator=generator), torch.full((len(clips),), time_left)
        noised = objective.add_noise(latents, noise, timestep)
        prediction = pipe.transformer(noised, timestep, context, return_dict=False)[0]
        values.append(diffusion_loss(prediction, objective.target(latents, noise, timestep)))
    return torch.stack(values).mean(0).numpy()


def distances(pipe: AudioXPipeline, clips: list[Clip], text: bool, video: bool) -> np.ndarray:
    """Return the log-mel distance between generated sounds and their clips, shape `[clips]`."""
    sounds = pipe(**prompts_of(clips, text, video), generator=seeded(range(len(clips)))).audios
    return distance_to_clips(sounds, clips, pipe.vae.config.sampling_rate)


def mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def print_table(name: str, results: dict[str, dict[str, np.ndarray]]) -> None:
    """Print `results`, values for each clip by run and prompt. Differences are those of single clips."""
    print(f"\n| {name} | with | without | without - with | rise, with | rise, without |\n|{'---|' * 6}")
    for prompt in PROMPTS:
        values = [results[run][prompt] for run in RUNS]
        rises = [
            "" if prompt == "text and video" else mean(results[run][prompt] - results[run]["text and video"])
            for run in RUNS
        ]
        print("| " + " | ".join([prompt, *map(mean, values), mean(values[1] - values[0]), *rises]) + " |")


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--scenes", type=Path, help="folder for the scenes, reused if it has them (default: a temporary one)"
    )
    parser.add_argument("--steps", type=int, default=600, help="training steps of each run (default: 600)")
    options, others = parser.parse_known_args()
    started = time.perf_counter()
    loss, distance = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = options.scenes or folder / "scenes"
        trained, held_out = render(scenes / "trained", TRAINED, seed=0), render(scenes / "unseen", HELD_OUT, seed=1)
        for run in RUNS:
            pipe = train(folder, trained, run, options.steps, others)
            clips = read_clips(held_out, pipe)
            loss[run] = {prompt: losses(pipe, clips, *has) for prompt, has in PROMPTS.items()}
            distance[run] = {prompt: distances(pipe, clips[:GENERATED], *has) for prompt, has in PROMPTS.items()}
    print(f"{options.steps} steps each on {TRAINED} scenes, {(time.perf_counter() - started) / 60:.0f} minutes")
    print_table(f"loss, {HELD_OUT} scenes", loss)
    print_table(f"log-mel distance, {GENERATED} scenes", distance)


if __name__ == "__main__":
    main()
