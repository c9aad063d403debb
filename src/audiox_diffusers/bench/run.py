"""The whole bench."""

import os
from collections.abc import Callable, Sequence
from itertools import product

from ..pipelines import AudioXPipeline
from ..scenes import load_recordings
from .codec import load_clips, reconstruct, score_vae
from .detectors import measure_detectors
from .generation import Sampling, Studio
from .items import BENCH_SEED, Bench, render_rate
from .report import Figure, Report, SweepReport
from .scores import Score, mean
from .tasks import TASKS

VAE = "vae"
ALL_TASKS = (*TASKS, VAE)

SWEEP_GUIDANCE = (1.0, 3.0, 7.0)
SWEEP_STEPS = (4, 10, 25, 100)
SWEEP_ETA = (0.0, 1.0)


def run_bench(
    pipe: AudioXPipeline,
    tasks: Sequence[str] | None = None,
    seeds: int = 3,
    count: int = 40,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    batch_size: int = 16,
    sounds: str | os.PathLike | None = None,
    clips: str | os.PathLike | None = None,
    ceilings: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """
    Measure how well a model follows text, video, pictures and sound, on scenes with known answers.

    The same scenes are used each time, with the noise of seeds 0, 1 and so on; on one machine the figures are the same
    each time. The pipeline is left as it was.

    Args:
        pipe: the pipeline, with a window of at least 2 s and a sampling rate of at least 8 kHz.
        tasks: of "text", "video", "image", "audio", "silence", "missing" and "vae"; `None` for all.
        seeds: how many.
        count: items of each task.
        num_inference_steps, guidance_scale: as of the pipeline, by default its own.
        eta: amount of noise that the scheduler adds at each step, 0 to 1; by default its own.
        batch_size: sounds that are made at a time.
        sounds: a folder of recorded sounds that some classes have instead of synthesised ones; see
            [`~scenes.load_recordings`].
        clips: a folder of sounds for the task "vae", instead of the scenes' sounds.
        ceilings: whether to measure also the true sounds, as they are and through the VAE.
        tell: called with a line after each part.

    Raises:
        ValueError: an argument is out of range, the model is not one that can be measured, or it makes NaN.
        FileNotFoundError: a folder is missing.
    """
    tasks = check_options(tasks, seeds, count)
    sampling = Sampling(num_inference_steps, guidance_scale, eta, batch_size)
    bench = open_bench(pipe, count, sounds)
    studio = Studio(pipe, bench, sampling)
    figures: dict[str, dict[str, Figure]] = {}
    for name in tasks:
        if name == VAE:
            figures[name] = _measure_vae(pipe, bench, clips)
        else:
            figures[name] = _measure(pipe, bench, studio, name, seeds, ceilings)
        tell(f"{name}: done, {studio.made} sounds so far in {studio.seconds:.0f} s")
    settings = {
        "bench_seed": BENCH_SEED,
        "tasks": tasks,
        "seeds": seeds,
        "count": count,
        "num_inference_steps": num_inference_steps or pipe.config.default_num_inference_steps,
        "guidance_scale": pipe.config.default_guidance_scale if guidance_scale is None else guidance_scale,
        "eta": pipe.scheduler.config.get("eta") if eta is None else eta,
        "sampling_rate": bench.sampling_rate,
        "channels": bench.channels,
        "seconds": bench.seconds,
        "video_fps": bench.video_fps,
    }
    detectors = measure_detectors(bench, pipe.vae) if ceilings else {}
    return Report(settings, detectors, figures, studio.seconds / studio.made if studio.made else 0.0)


def run_sweep(
    pipe: AudioXPipeline,
    tasks: Sequence[str] = ("text", "video"),
    seeds: int = 1,
    count: int = 8,
    batch_size: int = 16,
    sounds: str | os.PathLike | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> SweepReport:
    """
    The scores that tell most of each task, against the time that a sound takes, with guidance 1, 3 and 7, 4, 10, 25 and
    100 steps, and eta 0 and 1 where the scheduler has one.

    Args:
        pipe, tasks, seeds, count, batch_size, sounds, tell: as of [`run_bench`]; "vae" does not depend on any of it.

    Raises:
        ValueError, FileNotFoundError: as [`run_bench`].
    """
    tasks = check_options(tasks, seeds, count)
    if VAE in tasks:
        raise ValueError(f"`tasks` must be of {', '.join(TASKS)} for a sweep, got {VAE!r}")
    bench = open_bench(pipe, count, sounds)
    etas = SWEEP_ETA if "eta" in pipe.scheduler.config else (None,)
    rows = []
    for guidance, steps, eta in product(SWEEP_GUIDANCE, SWEEP_STEPS, etas):
        studio = Studio(pipe, bench, Sampling(steps, guidance, eta, batch_size))
        scores = {}
        for name in tasks:
            figures = _measure(pipe, bench, studio, name, seeds, ceilings=False)
            scores |= {f"{name}: {headline}": figures[headline].mean for headline in TASKS[name].headlines}
        rows.append(
            {
                "guidance_scale": guidance,
                "num_inference_steps": steps,
                "eta": eta,
                "seconds_per_clip": studio.seconds / studio.made,
                "scores": scores,
                "mean": mean(list(scores.values())),
            }
        )
        tell(f"guidance {guidance:g}, {steps} steps, eta {eta}: {rows[-1]['mean']:.3f}")
    settings = {"bench_seed": BENCH_SEED, "tasks": tasks, "seeds": seeds, "count": count}
    return SweepReport(settings, rows)


def check_options(tasks: Sequence[str] | None, seeds: int, count: int) -> list[str]:
    """The tasks without repetitions, all if none is given; `ValueError` names the argument that is out of range."""
    tasks = list(dict.fromkeys(ALL_TASKS if tasks is None else tasks))
    unknown = [name for name in tasks if name not in ALL_TASKS]
    if unknown or not tasks:
        raise ValueError(f"`tasks` must be of {', '.join(ALL_TASKS)}, got {', '.join(map(repr, unknown)) or 'none'}")
    for name, value in (("seeds", seeds), ("count", count)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value!r}")
    return tasks


def open_bench(pipe: AudioXPipeline, count: int, sounds: str | os.PathLike | None) -> Bench:
    """The items for a pipeline: `count` of each task, with the recordings of `sounds` if that is given."""
    rate = render_rate(pipe.vae.config.sampling_rate)
    return Bench.for_pipeline(pipe, count, None if sounds is None else load_recordings(sounds, rate))


def _measure(
    pipe: AudioXPipeline, bench: Bench, studio: Studio, name: str, seeds: int, ceilings: bool
) -> dict[str, Figure]:
    task = TASKS[name]
    requests = [getattr(bench, request) for request in task.requests]
    scores = [task.score(bench, *(studio.sounds(items, seed) for items in requests)) for seed in range(seeds)]
    rendered: dict[str, Score] = {}
    decoded: dict[str, Score] = {}
    if ceilings:
        true = [[bench.render(item.scene) for item in items] for items in requests]
        rendered = task.score(bench, *([bench.listen(sound) for sound in sounds] for sounds in true))
        decoded = task.score(
            bench, *([bench.listen(reconstruct(pipe.vae, sound)) for sound in sounds] for sounds in true)
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
