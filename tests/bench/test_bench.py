"""The bench on pipelines with known output: true sounds, sounds of other scenes, and silence."""

import json

import numpy as np
import pytest
from diffusers import AudioPipelineOutput

from audiox_diffusers import AudioXFlowMatchScheduler, AudioXPipeline
from audiox_diffusers.bench import BENCH_SEED, Bench, run_bench, run_sweep
from audiox_diffusers.cli import main
from audiox_diffusers.media import save_audio
from audiox_diffusers.scenes import scene_seed
from audiox_diffusers.testing import create_small_pipeline

COUNT = 8
REQUESTS = (
    "scenes_by_text",
    "captions",
    "swapped_captions",
    "scenes_by_video",
    "pictures",
    "completions",
    "inpaintings",
    "silences_by_text",
    "silences_by_video",
)


def make_pipeline() -> AudioXPipeline:
    """Create a pipeline with windows of 4 s at 16 kHz and a VAE that reconstructs sounds exactly."""
    pipe = create_small_pipeline()
    pipe.vae.register_to_config(sampling_rate=16000)
    pipe.transformer.register_to_config(sample_size=500)
    pipe.conditioner.register_to_config(audio_prompt_samples=64000)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> AudioXPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def bench(pipe) -> Bench:
    return Bench.for_pipeline(pipe, COUNT)


def key(prompt=None, video=None, image=None, audio=None):
    """Return the bytes or text that identify a request: the video if there is one."""
    if video is not None or image is not None:
        return (video if image is None else image).tobytes()
    return prompt if audio is None else audio[0].tobytes()


def answer_with(monkeypatch, bench: Bench, step: int = 0, level: float = 1.0) -> list[dict]:
    """
    Make pipelines return the true sound of each request, or that of the item `step` further in its list. Returns a
    list to which each call adds its arguments.
    """
    answers, calls = {}, []
    for name in REQUESTS:
        items = getattr(bench, name)
        for index, item in enumerate(items):
            other = items[(index + step) % len(items)]
            answers[key(item.prompt, item.video, item.image, item.audio)] = other.scene

    def call(
        self,
        generator,
        audio_length_in_s,
        num_inference_steps=None,
        guidance_scale=None,
        guidance_interval=None,
        guider=None,
        **prompts,
    ):
        assert audio_length_in_s == bench.seconds
        calls.append(
            {
                "eta": self.scheduler.config.get("eta"),
                "steps": num_inference_steps,
                "guidance": guidance_scale,
                "interval": guidance_interval,
                "guider": guider,
                "seeds": [item.initial_seed() for item in generator],
                **prompts,
            }
        )
        requests = [dict(zip(prompts, values)) for values in zip(*prompts.values(), strict=True)]
        sounds = [level * bench.render(answers[key(**request)]) for request in requests]
        return AudioPipelineOutput(audios=np.stack(sounds))

    monkeypatch.setattr(AudioXPipeline, "__call__", call)
    return calls


def values(report, task: str) -> dict[str, float]:
    return {name: figure.mean for name, figure in report.tasks[task].items()}


def test_true_sounds_score_1(pipe, bench, monkeypatch):
    answer_with(monkeypatch, bench)
    report = run_bench(pipe, seeds=1, count=COUNT)
    for task in ("text", "image", "silence"):
        assert set(values(report, task).values()) == {1.0}, task
    video, audio, missing = (values(report, task) for task in ("video", "audio", "missing"))
    assert video == pytest.approx(dict.fromkeys(("onset F1", "class", "order", "count", "rest"), 1.0), abs=0.05)
    assert audio["gap filled"] > 0.8 and audio["distance"] < 0.01
    assert audio["continued"] == audio["gap class"] == audio["around"] == 1
    assert min(value for name, value in missing.items() if name != "onset F1, text") > 0.95
    assert values(report, "vae")["log-mel distance"] < values(report, "vae")["of 64 kbit/s MP3"] < 1
    for figures in (report.tasks[task] for task in report.tasks if task != "vae"):
        assert all(figure.rendered > 0.8 for name, figure in figures.items() if name != "distance")
        assert all(figure.decoded > 0.8 for name, figure in figures.items() if name != "distance")
    assert report.detectors["as rendered"]["class of clips"] == 1
    for scores in report.detectors.values():
        assert min(scores["class of clips"], scores["class of events"], scores["onset F1"]) > 0.8


def test_sounds_of_other_scenes_score_by_chance(pipe, bench, monkeypatch):
    answer_with(monkeypatch, bench, step=1)
    report = run_bench(pipe, ["text", "video", "image", "audio"], seeds=1, count=COUNT, ceilings=False)
    text, video, image, audio = (report.tasks[task] for task in ("text", "video", "image", "audio"))
    assert text["class"].mean < 0.2 and text["swap"].mean < 0.2
    assert video["onset F1"].mean < 0.45 and video["class"].mean < 0.5
    assert image["class"].mean == 0 and image["class"].chance == pytest.approx(1 / 8)
    assert audio["gap class"].mean == audio["around"].mean == 0
    assert audio["distance"].mean > 1
    for figure in (text["class"], video["onset F1"], video["class"]):
        assert figure.chance < 0.45


def test_silence_scores_0_except_for_rest(pipe, bench, monkeypatch):
    answer_with(monkeypatch, bench, level=0.0)
    report = run_bench(pipe, ["text", "video", "image", "audio", "silence"], seeds=1, count=COUNT, ceilings=False)
    assert set(values(report, "text").values()) == {0.0}
    assert values(report, "image") == {"class": 0.0} and values(report, "silence") == {"text": 1.0, "video": 1.0}
    assert values(report, "video") == {"onset F1": 0, "class": 0, "order": 0, "count": 0, "rest": 1}
    assert values(report, "audio")["gap filled"] == values(report, "audio")["gap class"] == 0
    assert report.tasks["silence"]["text"].chance == 1


def test_each_item_has_its_own_noise_and_is_generated_once(pipe, bench, monkeypatch):
    calls = answer_with(monkeypatch, bench)
    scheduler = pipe.scheduler
    options = {"num_inference_steps": 7, "guidance_scale": 2.5, "eta": 0.25, "batch_size": 3}
    report = run_bench(pipe, ["missing", "video"], seeds=2, count=4, ceilings=False, **options)
    assert pipe.scheduler is scheduler and scheduler.config.eta == 1.0
    assert {(call["steps"], call["guidance"], call["eta"]) for call in calls} == {(7, 2.5, 0.25)}
    sizes = [len(call["seeds"]) for call in calls]
    assert max(sizes) == 3 and sum(sizes) == 2 * 3 * 4, "the task video reuses sounds of the task missing"
    by_video = [seed for call in calls if set(call) >= {"video"} and "prompt" not in call for seed in call["seeds"]]
    assert sorted(by_video) == sorted(scene_seed(seed, noise) for seed in range(2) for noise in range(4))
    figure = report.tasks["video"]["onset F1"]
    assert len(figure.values) == 2 and figure.spread == 0 and figure.count == 4


def test_guidance_of_the_bench(pipe, bench, monkeypatch):
    calls = answer_with(monkeypatch, bench)
    options = {"seeds": 1, "count": 2, "ceilings": False}
    weights = {"text": 2.0, "video": 3.0}
    report = run_bench(pipe, ["missing"], guidance_scale=weights, guidance_interval=(0.2, 0.8), **options)
    assert [(call["guidance"], call["interval"]) for call in calls] == [
        ({"text": 2.0}, (0.2, 0.8)),
        ({"video": 3.0}, (0.2, 0.8)),
        (weights, (0.2, 0.8)),
    ]
    assert json.loads(report.to_json())["settings"]["guidance_interval"] == [0.2, 0.8]
    calls.clear()
    run_bench(pipe, ["image"], guidance_scale={"text": 2.0}, **options)
    run_bench(pipe, ["image"], guidance_scale=4.0, guider="apg:eta=0.5", **options)
    run_bench(pipe, ["image"], guider="cfg-zero-star", **options)
    unguided, apg, zero = calls
    assert unguided["guidance"] == 1.0 and apg["guidance"] is None and zero["guidance"] is None
    assert apg["guider"].guidance_scale == 4.0 and apg["guider"].eta == 0.5
    assert zero["guider"].guidance_scale == pipe.config.default_guidance_scale


def test_swapped_captions_differ_only_in_class_words(bench):
    for item, swapped in zip(bench.captions, bench.swapped_captions, strict=True):
        assert item.noise == swapped.noise and item.prompt != swapped.prompt
        before, after = ([event.sound for event in it.scene.events] for it in (item, swapped))
        assert all(one != other for one, other in zip(before, after, strict=True))
        assert len(set(zip(before, after))) == len(set(before)) == len(set(after))
    kinds = [len({event.sound for event in item.scene.events}) for item in bench.captions]
    assert kinds == [1] * 5 + [2] * 3


def test_scenes_are_reproducible_and_unique(bench, pipe):
    again = Bench.for_pipeline(pipe, COUNT)
    assert [item.scene for item in again.captions] == [item.scene for item in bench.captions]
    assert again.scenes == bench.scenes
    seeds = {item.scene.seed for item in (*bench.captions, *bench.scenes_by_text)}
    assert len(seeds) == 2 * COUNT
    assert not seeds & {scene_seed(seed, index) for seed in (0, 1) for index in range(1000)}
    assert scene_seed(BENCH_SEED, 0) not in {scene_seed(0, index) for index in range(1000)}


def test_video_has_the_frames_of_a_file(bench):
    """Each frame is the latest one of a video at 25 fps, as [`load_video`] chooses it."""
    item = bench.scenes_by_video[0]
    frames = item.scene.frames(25)
    assert item.video.shape == (20, 96, 96, 3)
    assert np.array_equal(item.video, frames[::5])


def test_scores_do_not_depend_on_the_batch_size():
    pipe = create_small_pipeline()
    pipe.set_progress_bar_config(disable=True)
    options = {"seeds": 1, "count": 3, "num_inference_steps": 2, "ceilings": False}
    reports = [run_bench(pipe, ["text", "audio", "silence"], batch_size=size, **options) for size in (4, 1)]
    assert reports[0].tasks == reports[1].tasks
    assert reports[0].settings["seconds"] == 2.0 and reports[0].settings["sampling_rate"] == 8000


def test_sweep(pipe, bench, monkeypatch):
    calls = answer_with(monkeypatch, bench)
    report = run_sweep(pipe, ["image"], count=2)
    assert len(report.rows) == 24
    assert {(call["guidance"], call["steps"], call["eta"]) for call in calls} == {
        (guidance, steps, eta) for guidance in (1, 3, 7) for steps in (4, 10, 25, 100) for eta in (0, 1)
    }
    assert all(row["scores"] == {"image: class": 1.0} and row["mean"] == 1 for row in report.rows)
    lines = report.table().splitlines()
    assert len(lines) == 26 and lines[0].split("|")[-2].strip() == "s a clip"
    monkeypatch.setattr(pipe, "scheduler", AudioXFlowMatchScheduler())
    assert len(run_sweep(pipe, ["image"], count=2).rows) == 12


def test_sweep_of_a_few_step_model(pipe, bench, monkeypatch):
    scheduler = AudioXFlowMatchScheduler(stochastic_sampling=True, distilled_timesteps=[1.0, 0.75, 0.5])
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    rows = run_sweep(pipe, ["image"], count=2).rows
    assert [(row["guidance_scale"], row["num_inference_steps"], row["eta"]) for row in rows] == [
        (1.0, 1, None),
        (1.0, 2, None),
        (1.0, 3, None),
    ]


def test_recordings_replace_a_class(pipe, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "bell").mkdir()
    for index in range(2):
        noise = rng.uniform(-0.5, 0.5, 8000).astype(np.float32)
        save_audio(tmp_path / "bell" / f"{index}.wav", noise, 16000)
    report = run_bench(pipe, ["vae"], seeds=1, count=2, sounds=tmp_path)
    assert report.detectors["as rendered"]["class of clips"] == 1


def test_clips_from_a_folder(pipe, tmp_path):
    time = np.arange(3 * 22050) / 22050
    (tmp_path / "more").mkdir()
    for name in ("a.wav", "more/b.flac"):
        save_audio(tmp_path / name, (0.5 * np.sin(2000 * time)).astype(np.float32), 22050)
    figures = run_bench(pipe, ["vae"], count=5, clips=tmp_path, ceilings=False).tasks["vae"]
    assert {figure.count for figure in figures.values()} == {2}


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"tasks": ["text", "smell"]}, ValueError, "tasks.*text, video.*'smell'"),
        ({"tasks": []}, ValueError, "tasks.*none"),
        ({"count": 0}, ValueError, "count.*0"),
        ({"seeds": 0}, ValueError, "seeds.*0"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps.*0"),
        ({"eta": 1.5}, ValueError, "eta.*1.5"),
        ({"batch_size": 0}, ValueError, "batch_size.*0"),
        ({"guider": "apq"}, ValueError, "guider.*apg, cfg-zero-star.*apq"),
        ({"guider": "apg", "guidance_scale": {"text": 3.0}}, ValueError, "guider.*guidance_scale"),
        ({"guider": "apg", "guidance_interval": (0, 0.5)}, ValueError, "guider.*guidance_interval"),
        ({"sounds": "missing"}, FileNotFoundError, "missing"),
        ({"tasks": ["vae"], "clips": "missing"}, FileNotFoundError, "missing"),
    ],
)
def test_wrong_arguments_are_refused(pipe, options, error, named):
    with pytest.raises(error, match=named):
        run_bench(pipe, **options)


def test_unsuitable_models_are_refused():
    short = make_pipeline()
    short.transformer.register_to_config(sample_size=249)
    with pytest.raises(ValueError, match="window.*2 s.*1.992"):
        run_bench(short, ["text"])
    flow = make_pipeline()
    flow.scheduler = AudioXFlowMatchScheduler()
    with pytest.raises(ValueError, match="eta.*AudioXFlowMatchScheduler"):
        run_bench(flow, ["image"], count=1, eta=0.5)
    with pytest.raises(ValueError, match="tasks.*sweep.*'vae'"):
        run_sweep(flow, ["vae"])


def test_command(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "out"
    create_small_pipeline().save_pretrained(model)

    def run(*words: object) -> int:
        return main(["bench", "--model", str(model), *map(str, words)])

    options = ["--tasks", "image", "--count", 2, "--seeds", 2, "--steps", 2, "--guidance", "video=3", "--eta", 0.5]
    assert run(*options, "--output", output) == 0
    said = capsys.readouterr().out
    assert "| image | class" in said and "accuracy of the metrics" in said
    assert [path.name for path in output.iterdir()] == ["bench.json"]
    report = json.loads((output / "bench.json").read_text())
    assert report["settings"]["guidance_scale"] == {"video": 3} and report["settings"]["eta"] == 0.5
    assert len(report["tasks"]["image"]["class"]["values"]) == 2
    assert report["seconds_per_clip"] > 0

    for words, named in (
        (["--tasks", "smell"], "'smell'"),
        (["--sweep", "--tasks", "vae"], "sweep, got 'vae'"),
        (["--count", 0], "--count"),
        (["--sweep", "--steps", 3], "--steps"),
        (["--sweep", "--guidance-interval", "0-0.5"], "--guidance-interval"),
        (["--guider", "apg", "--guidance", "text=3"], "--guidance must be one number with a guider"),
        (["--output", tmp_path / "a" / "b"], f"{tmp_path / 'a'}: no such folder"),
        (["--model", tmp_path / "no"], "no such folder"),
    ):
        assert run(*words) == 2
        said = capsys.readouterr()
        assert named in said.err and len(said.err.splitlines()) == 1 and not said.out


@pytest.mark.parametrize("count", [2, 5, 8, 12, 40])
def test_continued_sounds_have_the_class_of_the_prompt_and_are_other_sounds(pipe, count):
    bench = Bench.for_pipeline(pipe, count)
    wanted = [bench.preprocess(bench.render(item.scene)) for item in bench.completions]
    for item, sound in zip(bench.completions, wanted, strict=True):
        prompt = bench.preprocess(item.audio[0])
        assert bench.classifier.classify(prompt) == item.scene.events[0].sound
        assert not any(np.array_equal(prompt, other) for other in wanted)
        assert bench.classifier.classify(sound) == item.scene.events[0].sound
