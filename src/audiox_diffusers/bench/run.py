"""Run the bench, or a sweep over sampling options."""

import os
from collections.abc import Callable, Sequence
from itertools import product

from ..pipelines import AudioXPipeline
from ..scenes import load_recordings
from .codec import load_clips, reconstruct, score_vae
from .detectors import measure_detectors
from .generation import SamplingOptions, SoundGenerator
from .items import BENCH_SEED, Bench, render_rate
from .options import VAE, check_counts, check_tasks
from .report import Figure, Report, SweepReport
from .scores import Score, mean
from .tasks import TASKS

SWEEP_GUIDANCE = (1.0, 3.0, 7.0)
SWEEP_STEPS = (4, 10, 25, 100)
SWEEP_ETA = (0.0, 1.0)


def run_bench(
    pipe: AudioXPipeline,
    tasks: Sequence[str] | None = None,
    seeds: int = 3,
    count: int = 40,
    num_inference_steps: int | None = None,
    guidance_scale: float | dict[str, float] | None = None,
    eta: float | None = None,
    batch_size: int = 16,
    sounds: str | os.PathLike | None = None,
    clips: str | os.PathLike | None = None,
    ceilings: bool = True,
    log: Callable[[str], None] = lambda line: None,
    guidance_interval: tuple[float, float] | None = None,
    guider: str | None = None,
) -> Report:
    """
    Measure how well a model follows text, video, pictures and audio, on scenes with known answers.

    Scenes and seeds are fixed, so scores are reproducible on one machine. The pipeline is not changed.

    Args:
        pipe: Pipeline with a window of at least 2 s and a sampling rate of at least 8 kHz.
        tasks: Some of "text", "video", "image", "audio", "silence", "missing" and "vae"; `None` for all.
        seeds: Number of seeds: 0, 1 and so on.
        count: Number of items for each task.
        num_inference_steps, guidance_scale: Options of the pipeline; `None` for its defaults. Weights by modality apply
            to items that have a prompt of that modality.
        eta: Amount of noise that the scheduler adds at each step, from 0 to 1; `None` for the scheduler's own.
        batch_size: Number of sounds generated at once.
        sounds: Folder with recordings that replace synthesised sounds; see [`~scenes.load_recordings`].
        clips: Folder with sounds for the task "vae", instead of those of the scenes.
        ceilings: Whether to score the true sounds as well, unchanged and after the VAE.
        log: Called with a line after each task.
        guidance_interval: Option of the pipeline.
        guider: A guider with the scale `guidance_scale`, such as "apg" or "apg:eta=0.5", as for `audiox bench`.

    Raises:
        ValueError: If an argument is out of range, or the model does not fit the bench or generates NaN.
        FileNotFoundError: If a folder does not exist.
    """
    tasks = check_tasks(tasks)
    check_counts(seeds, count)
    options = SamplingOptions(num_inference_steps, guidance_scale, eta, batch_size, guidance_interval, guider)
    bench = open_bench(pipe, count, sounds)
    generator = SoundGenerator(pipe, bench, options)
    figures: dict[str, dict[str, Figure]] = {}
    for name in tasks:
        if name == VAE:
            figures[name] = _measure_vae(pipe, bench, clips)
        else:
            figures[name] = _measure(pipe, bench, generator, name, seeds, ceilings)
        log(f"{name}: done, {generator.num_generated} sounds so far in {generator.seconds:.0f} s")
    settings = {
        "bench_seed": BENCH_SEED,
        "tasks": tasks,
        "seeds": seeds,
        "count": count,
        "num_inference_steps": num_inference_steps or pipe.config.default_num_inference_steps,
        "guidance_scale": pipe.config.default_guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_interval": guidance_interval,
        "guider": guider,
        "eta": pipe.scheduler.config.get("eta") if eta is None else eta,
        "sampling_rate": bench.sampling_rate,
        "channels": bench.channels,
        "seconds": bench.seconds,
        "video_fps": bench.video_fps,
    }
    detectors = measure_detectors(bench, pipe.vae) if ceilings else {}
    return Report(
        settings, detectors, figures, generator.seconds / generator.num_generated if generator.num_generated else 0.0
    )


def run_sweep(
    pipe: AudioXPipeline,
    tasks: Sequence[str] = ("text", "video"),
    seeds: int = 1,
    count: int = 8,
    batch_size: int = 16,
    sounds: str | os.PathLike | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> SweepReport:
    """
    Measure the most important scores of each task and the time per sound for guidance 1, 3 and 7, for 4, 10, 25 and 100
    steps, and for eta 0 and 1 if the scheduler has it. A few-step model runs without guidance, with each power of two of
    steps that it allows.

    Args:
        pipe, tasks, seeds, count, batch_size, sounds, log: See [`run_bench`]. The task "vae" depends on none of the
            options and is not allowed.

    Raises:
        ValueError, FileNotFoundError: See [`run_bench`].
    """
    tasks = check_tasks(tasks, sweep=True)
    check_counts(seeds, count)
    bench = open_bench(pipe, count, sounds)
    rows = []
    for guidance, steps, eta in _sweep_options(pipe):
        generator = SoundGenerator(pipe, bench, SamplingOptions(steps, guidance, eta, batch_size))
        scores = {}
        for name in tasks:
            figures = _measure(pipe, bench, generator, name, seeds, ceilings=False)
            scores |= {f"{name}: {headline}": figures[headline].mean for headline in TASKS[name].headlines}
        rows.append(
            {
                "guidance_scale": guidance,
                "num_inference_steps": steps,
                "eta": eta,
                "seconds_per_clip": generator.seconds / generator.num_generated,
                "scores": scores,
                "mean": mean(list(scores.values())),
            }
        )
        log(f"guidance {guidance:g}, {steps} steps, eta {eta}: {rows[-1]['mean']:.3f}")
    settings = {"bench_seed": BENCH_SEED, "tasks": tasks, "seeds": seeds, "count": count}
    return SweepReport(settings, rows)


def _sweep_options(pipe: AudioXPipeline) -> list[tuple[float, int, float | None]]:
    """Return the guidance scales, steps and etas of a sweep."""
    config = pipe.scheduler.config
    if config.get("distilled_timesteps") is not None:
        most = len(config.distilled_timesteps)
        return [(1.0, steps, None) for steps in sorted({2**power for power in range(most.bit_length())} | {most})]
    return list(product(SWEEP_GUIDANCE, SWEEP_STEPS, SWEEP_ETA if "eta" in config else (None,)))


def open_bench(pipe: AudioXPipeline, count: int, sounds: str | os.PathLike | None) -> Bench:
    """Create the bench for a pipeline, with the recordings in the folder `sounds` if it is given."""
    rate = render_rate(pipe.vae.config.sampling_rate)
    return Bench.for_pipeline(pipe, count, None if sounds is None else load_recordings(sounds, rate))


def _measure(
    pipe: AudioXPipeline, bench: Bench, generator: SoundGenerator, name: str, seeds: int, ceilings: bool
) -> dict[str, Figure]:
    task = TASKS[name]
    requests = [getattr(bench, request) for request in task.requests]
    scores = [task.score(bench, *(generator.generate(items, seed) for items in requests)) for seed in range(seeds)]
    rendered: dict[str, Score] = {}
    decoded: dict[str, Score] = {}
    if ceilings:
        true = [[bench.render(item.scene) for item in items] for items in requests]
        rendered = task.score(bench, *([bench.preprocess(sound) for sound in sounds] for sounds in true))
        decoded = task.score(
            bench, *([bench.preprocess(reconstruct(pipe.vae, sound)) for sound in sounds] for sounds in true)
        )
    return {
        measure: Figure.of([score[measure] for score in scores], rendered.get(measure), decoded.get(measure))
        for measure in scores[0]
    }


def _measure_vae(pipe: AudioXPipeline, bench: Bench, clips: str | os.PathLike | None) -> dict[str, Figure]:
    if clips is None:
        sounds = [bench.render(scene) for scene in bench.scenes]
    else:
        sounds = load_clips(clips, bench.count, bench.sampling_rate, bench.channels, bench.seconds)
    return {name: Figure.of([score]) for name, score in score_vae(pipe.vae, sounds).items()}
