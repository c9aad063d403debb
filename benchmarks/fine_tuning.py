"""
Fine-tune audiox-tiny on a few recordings of one kind, for five minutes on one core, and test whether it learns the kind:

    python training/free_sounds/make_sounds.py letters --table training/free_sounds/letters.csv
    python training/free_sounds/make_sounds.py sounds
    python benchmarks/fine_tuning.py letters sounds

The first folder has recordings of the new kind, all with one caption. Every third one is held out. The model is trained on
the others, once with `audiox train-lora` and once with `audiox train`, for `--minutes` of processor time. Then it generates
sounds for the caption. Each is compared by log-mel distance with the held-out clips and with all clips of the second folder,
which are of other kinds. The benchmark prints how many sounds are nearest to a clip of their kind, and the mean distance to
the nearest clip of their kind, before and after training. The last row has the training clips after the VAE instead of
generated sounds, because that is the most that a model with this VAE can learn from them.

Unknown options are passed to both trainings and override their defaults.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import create_parser, quiet
from training_runs import TARGETS, Clip, create_trainer, distances, generate, read_clips

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.training import FullTraining, LoraTraining

HELD_OUT = 3  # every third clip
TRIAL = 20  # steps that measure how long a step takes
METHODS = {
    "lora": (LoraTraining, {"learning_rate": 2e-3, "rank": 16, "target_modules": TARGETS}),
    "full": (FullTraining, {"learning_rate": 5e-4}),
}


def write_dataset(folder: Path, source: Path) -> Path:
    """Write a dataset with the clips of `source` that are not held out."""
    folder.mkdir()
    lines = (source / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for number, line in enumerate(lines) if number % HELD_OUT]
    for row in rows:
        (folder / row["file_name"]).symlink_to((source / row["file_name"]).resolve())
    kept = [json.dumps({"file_name": row["file_name"], "caption": row["caption"]}) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(kept))
    return folder


def train(method: str, options: dict[str, object], output: Path, steps: int, others: list[str]) -> float:
    """Train and return the processor time in seconds."""
    started = time.process_time()
    kind, own = METHODS[method]
    create_trainer({**options, **own, "output_dir": output, "max_train_steps": steps}, others, kind).train()
    return time.process_time() - started


def trained(pipe: AudioXPipeline, method: str, output: Path) -> AudioXPipeline:
    """Return the pipeline after training."""
    if method == "full":
        return quiet(AudioXPipeline.from_pretrained(output))
    pipe.load_lora_weights(output)
    return pipe


def summarize(sounds: list[np.ndarray], own: list[Clip], others: list[Clip], length: int, rate: int) -> str:
    """Return two cells of the table: how many sounds are nearest to a clip in `own`, and the mean distance to that."""
    found = torch.tensor([distances(sound, [*own, *others], length, rate) for sound in sounds])
    nearest = int((found.argmin(1) < len(own)).sum())
    return f"{nearest} of {len(sounds)} | {found[:, : len(own)].min(1).values.mean():.3f}"


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("clips", type=Path, help="dataset folder with clips of one kind")
    parser.add_argument("others", type=Path, help="dataset folder with clips of other kinds")
    parser.add_argument("--model", default="audiox-tiny", help="name, folder or Hub id (default: audiox-tiny)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="default: both")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of a training (default: 5)")
    parser.add_argument("--sounds", type=int, default=32, help="sounds to generate (default: 32)")
    options, unknown = parser.parse_known_args()
    torch.set_num_threads(1)

    pipe = quiet(AudioXPipeline.from_pretrained(options.model))
    rate, length = pipe.vae.config.sampling_rate, pipe.window_samples
    clips, others = read_clips(options.clips, pipe), read_clips(options.others, pipe)
    held_out = clips[::HELD_OUT]
    learned = [clip for number, clip in enumerate(clips) if number % HELD_OUT]
    captions = [learned[0].caption] * options.sounds
    rows = {}

    def report(name: str, sounds: list[np.ndarray]) -> None:
        rows[name] = summarize(sounds, held_out, others, length, rate)

    report("before", generate(pipe, captions, length / rate))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = {
            "pretrained_model_name_or_path": options.model,
            "dataset": write_dataset(folder / "clips", options.clips),
            "cache_latents": folder / "cache",
            "train_batch_size": 4,
            "lr_scheduler": "cosine",
            "task_weights": ["inpainting=0", "completion=0"],
        }
        for method in options.methods:
            step = train(method, training, folder / f"trial-{method}", TRIAL, unknown) / TRIAL
            steps = max(1, round(60 * options.minutes / step))
            took = train(method, training, folder / method, steps, unknown)
            sounds = generate(trained(pipe, method, folder / method), captions, length / rate)
            report(f"after `{method}`, {steps} steps in {took / 60:.1f} minutes", sounds)
    report("training clips, after the VAE", [reconstruct(pipe.vae, clip.sound) for clip in learned])

    print(f"\n{len(learned)} clips, {len(held_out)} held out, {len(others)} of other kinds\n")
    print("| sounds | nearest clip is of their kind | distance to the nearest of their kind |\n|---|---|---|")
    for name, cells in rows.items():
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
