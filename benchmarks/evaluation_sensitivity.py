"""
Do the metrics of `audiox evaluate` move the right way when sounds get worse?

    python benchmarks/evaluation_sensitivity.py [--count 64] [--weights FOLDER]

The embedded model generates audio for the captions of rendered scenes, and the rendered sounds are the reference. The
rendered sounds are then spoiled on purpose: with noise, a low-pass, sounds of other captions, and a shift in time. A
second table says for each kind and metric whether three levels of it are in the right order, from the unspoiled sounds
on. Set distances cannot see other captions; `kl` and `onset-f1` can, because they compare pairs.

Without --weights, networks have random weights: distances still mean something, because random convolutions keep what
differs, but the CLAP score and DeSync do not, so they are left out. `onset-f1` needs no weights.
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
from audiox_diffusers.evaluation.metrics import METRICS as METRIC_CATALOG
from audiox_diffusers.evaluation.run import run_evaluation
from audiox_diffusers.media import save_audio
from audiox_diffusers.scenes import random_scene, scene_seed

RATE, SECONDS = 16_000, 4.0
METRICS = ("fad", "kad", "fd", "kl", "onset-f1")
# Kinds of change that a set distance cannot see.
SET_DISTANCES, PAIRS_ONLY = ("fad", "kad", "fd"), ("other captions",)


def noise(sound: torch.Tensor, level: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return sound + level * torch.randn(sound.shape, generator=generator)


def changes(sounds: list[torch.Tensor]) -> dict[str, dict[str, list[torch.Tensor]]]:
    """Return spoiled sounds by kind and level, from little to much."""
    return {
        "noise": {f"{level:g}": [noise(sound, level) for sound in sounds] for level in (0.003, 0.01, 0.03)},
        "low-pass": {
            f"{cutoff} Hz": [lowpass_biquad(lowpass_biquad(sound, RATE, cutoff), RATE, cutoff) for sound in sounds]
            for cutoff in (4000, 2000, 1000)
        },
        "other captions": {f"{share:.0%}": exchanged(sounds, share) for share in (0.25, 0.5, 1.0)},
        "shifted": {
            f"{seconds:g} s": [torch.roll(sound, round(seconds * RATE), dims=-1) for sound in sounds]
            for seconds in (0.05, 0.15, 0.5)
        },
    }


def exchanged(sounds: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Give a share of the names the sound of the next name."""
    count = round(share * len(sounds))
    return [*sounds[1:count], *sounds[:1], *sounds[count:]]


def verdict(metric: str, kind: str, values: list[float]) -> str:
    """Say whether the values of three levels, after that of the unspoiled sounds, get worse."""
    if metric in SET_DISTANCES and kind in PAIRS_ONLY:
        return "blind"
    steps = [
        (after - before) * (-1 if METRIC_CATALOG[metric].better == "higher" else 1)
        for before, after in zip(values, values[1:], strict=False)
    ]
    if min(steps) > 0:
        return "worse at each level"
    return "never better" if min(steps) == 0 else "not monotone"


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

        def measure(label: str, row: list[torch.Tensor]) -> dict[str, float]:
            target = folder / f"{len(list(folder.iterdir()))}"
            report = run_evaluation(EvaluationSet(write(target, row), reference), config)
            values = {figure.metric: figure.value for figure in report.figures}
            print(f"| {label} | " + " | ".join(f"{values[metric]:.4g}" for metric in METRICS) + " |", flush=True)
            return values

        print("| sounds | " + " | ".join(METRICS) + " |\n|" + "---|" * (len(METRICS) + 1))
        rendered = measure("as rendered", sounds)
        verdicts = {}
        for kind, levels in changes(sounds).items():
            found = [rendered, *(measure(f"{kind} {level}", row) for level, row in levels.items())]
            verdicts[kind] = [verdict(metric, kind, [values[metric] for values in found]) for metric in METRICS]
        measure("audiox-tiny", generated)
    print("\n| change | " + " | ".join(METRICS) + " |\n|" + "---|" * (len(METRICS) + 1))
    for kind, row in verdicts.items():
        print(f"| {kind} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
