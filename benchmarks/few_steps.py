"""
Scores, diversity and speed of few-step students beside their teacher.

    python benchmarks/few_steps.py --teacher audiox-tiny --student FOLDER [FOLDER ...] [--seeds 3] [--count 40]

The rows are the teacher with its own steps and guidance, the teacher with 4 steps, and each student with all of its
steps and with fewer. The scores are the bench's: classes by text, video and picture, onset F1, order and count by video.

`diversity` is the mean distance between the log-mel spectrograms of eight seeds of one caption, over 16 captions, as a
ratio to the teacher's. `level` is the mean level of all sounds before any scaling, in dB relative to the teacher's.
Seconds a clip are for batches of one. They are measured in turn, clip by clip, so that other load on the machine hits
all rows alike.
"""

import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from common import create_parser, quiet, seeded

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.features import band_levels
from audiox_diffusers.bench.generation import SamplingOptions, SoundGenerator
from audiox_diffusers.bench.items import Bench
from audiox_diffusers.bench.run import open_bench
from audiox_diffusers.bench.tasks import TASKS
from audiox_diffusers.tables import markdown_table

MEASURES = [("text", "class"), ("video", "class"), ("image", "class"), ("video", "onset F1"), ("video", "order")]
MEASURES += [("video", "count")]
CAPTIONS, SEEDS = 16, 8
# Lowest level of a spectrogram in dB, so that silence does not decide its distances.
FLOOR = -60.0


@dataclass
class Row:
    """A model with its number of steps."""

    name: str
    pipe: AudioXPipeline
    steps: int
    guidance: float

    def generate(self, prompts: list[str], seeds: list[int], seconds: float) -> np.ndarray:
        return self.pipe(
            prompt=prompts,
            audio_length_in_s=seconds,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=seeded(seeds),
        ).audios


def open_rows(teacher: str, students: list[str]) -> list[Row]:
    pipe = quiet(AudioXPipeline.from_pretrained(teacher))
    steps, guidance = pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale
    rows = [Row("teacher", pipe, steps, guidance), Row("teacher", pipe, 4, guidance)]
    for folder in students:
        pipe = quiet(AudioXPipeline.from_pretrained(folder))
        most = pipe.config.default_num_inference_steps
        rows += [Row(Path(folder).name, pipe, count, 1.0) for count in sorted({most, 2, 1}, reverse=True)]
    return rows


def scores(row: Row, bench: Bench, seeds: int) -> list[float]:
    """Return the mean of each measure over the seeds."""
    generator = SoundGenerator(row.pipe, bench, SamplingOptions(row.steps, row.guidance))
    found: dict[tuple[str, str], list[float]] = {}
    for name in ("text", "video", "image"):
        items = [getattr(bench, request) for request in TASKS[name].requests]
        for seed in range(seeds):
            result = TASKS[name].score(bench, *(generator.generate(part, seed) for part in items))
            for measure, score in result.items():
                found.setdefault((name, measure), []).append(score.value)
    return [float(np.mean(found[measure])) for measure in MEASURES]


def spread_and_level(row: Row, bench: Bench) -> tuple[float, float]:
    """Return the mean distance in dB between the spectrograms of the seeds of a caption, and the mean level in dB."""
    distances, powers = [], []
    for item in bench.scenes_by_text[:CAPTIONS]:
        sounds = row.generate([item.prompt] * SEEDS, list(range(SEEDS)), bench.seconds)
        powers += [np.square(sound).mean() for sound in sounds]
        spectrograms = [band_levels(bench.preprocess(sound)).clamp(min=FLOOR) for sound in sounds]
        distances += [(a - b).abs().mean().item() for a, b in combinations(spectrograms, 2)]
    return float(np.mean(distances)), float(10 * np.log10(np.mean(powers) + 1e-12))


def seconds_a_clip(rows: list[Row], bench: Bench, rounds: int) -> list[float]:
    """Return the median seconds of a clip for each row, measured in turn."""
    times: list[list[float]] = [[] for _ in rows]
    for number in range(rounds + 1):
        for row, found in zip(rows, times, strict=True):
            started = time.perf_counter()
            row.generate([bench.scenes_by_text[0].prompt], [number], bench.seconds)
            found.append(time.perf_counter() - started)
    return [float(np.median(found[1:])) for found in times]


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--teacher", default="audiox-tiny")
    parser.add_argument("--student", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15, help="clips for the speed of each row (default: 15)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = open_rows(args.teacher, args.student)
    bench = open_bench(rows[0].pipe, args.count, None)
    times = seconds_a_clip(rows, bench, args.rounds)
    table, figures, reference = [], [], None
    for row, seconds in zip(rows, times, strict=True):
        values, (spread, level) = scores(row, bench, args.seeds), spread_and_level(row, bench)
        mean = float(np.mean(values))
        reference = reference or (mean, spread, level, seconds)
        ratios = {
            "mean": mean,
            "of teacher": mean / reference[0],
            "diversity": spread / reference[1],
            "level": level - reference[2],
            "s a clip": seconds,
            "times as fast": reference[3] / seconds,
        }
        names = [f"{task} {measure}" for task, measure in MEASURES]
        figures.append({"model": row.name, "steps": row.steps, **dict(zip(names, values, strict=True)), **ratios})
        table.append([row.name, str(row.steps), *(f"{value:.3f}" for value in (*values, *ratios.values()))])
        print(" ".join(table[-1]), flush=True)
    print("\n" + markdown_table(["model", "steps", *names, *ratios], table))
    if args.output is not None:
        args.output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
