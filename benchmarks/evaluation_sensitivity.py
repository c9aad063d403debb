"""
Do the metrics of `audiox evaluate` move the right way when sounds get worse?

    python benchmarks/evaluation_sensitivity.py [--count 64] [--weights FOLDER]

The embedded model generates audio for the captions of rendered scenes, and the rendered sounds are the reference. The
rendered sounds are then spoiled on purpose: with noise, a low-pass, other captions, and a shift in time. A row of three
levels must be monotone. Without --weights, networks have random weights: distances still mean something, because random
convolutions keep what differs, but the CLAP score and DeSync do not, so they are left out.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from random_networks import use_random_weights
from torchaudio.functional import lowpass_biquad

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.evaluation.clips import EvaluationSet
from audiox_diffusers.evaluation.config import EvaluationConfig
from audiox_diffusers.evaluation.run import run_evaluation
from audiox_diffusers.media import save_audio
from audiox_diffusers.scenes import random_scene, scene_seed

RATE, SECONDS = 16_000, 4.0
METRICS = ("fad", "kad", "fd", "kl", "is")


def noise(sound: torch.Tensor, level: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return sound + level * torch.randn(sound.shape, generator=generator)


def changes(sounds: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Spoiled sounds, from little to much."""
    rows = {f"noise {level:g}": [noise(sound, level) for sound in sounds] for level in (0.003, 0.01, 0.03)}
    for cutoff in (4000, 2000, 1000):
        rows[f"low-pass {cutoff} Hz"] = [lowpass_biquad(lowpass_biquad(s, RATE, cutoff), RATE, cutoff) for s in sounds]
    for share in (0.25, 0.5, 1.0):
        count = round(share * len(sounds))
        rows[f"other captions {share:.0%}"] = [*sounds[1:count], *sounds[:1], *sounds[count:]]
    for seconds in (0.1, 0.5, 1.0):
        rows[f"shifted {seconds:g} s"] = [torch.roll(sound, round(seconds * RATE), dims=-1) for sound in sounds]
    return rows


def write(folder: Path, sounds: list[torch.Tensor]) -> dict[str, Path]:
    folder.mkdir()
    files = {}
    for number, sound in enumerate(sounds):
        files[f"{number:03}"] = folder / f"{number:03}.flac"
        save_audio(files[f"{number:03}"], sound.clamp(-1, 1), RATE)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="scenes (default: 64)")
    parser.add_argument("--weights", type=Path, help="folder with the networks' files")
    args = parser.parse_args()
    if args.weights is None:
        use_random_weights("vggish", "cnn14-16k")

    scenes = [random_scene(scene_seed(7, number), SECONDS) for number in range(args.count)]
    sounds = [torch.as_tensor(scene.audio(RATE)).float().reshape(1, -1) for scene in scenes]
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(number) for number in range(args.count)]
    captions = [scene.caption() for scene in scenes]
    generated = [
        torch.from_numpy(pipe(caption, generator=generator, num_inference_steps=25).audios[0])
        for caption, generator in zip(captions, generators, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        reference = write(folder / "reference", sounds)
        config = EvaluationConfig(cache=folder / "cache", metrics=METRICS, weights=args.weights)
        rows = {"as rendered": sounds, **changes(sounds), "audiox-tiny": generated}
        print("| sounds | " + " | ".join(METRICS) + " |\n|" + "---|" * (len(METRICS) + 1))
        for number, (name, row) in enumerate(rows.items()):
            report = run_evaluation(EvaluationSet(write(folder / str(number), row), reference), config)
            values = {figure.metric: figure.value for figure in report.figures}
            print(f"| {name} | " + " | ".join(f"{values[metric]:.4g}" for metric in METRICS) + " |", flush=True)


if __name__ == "__main__":
    main()
