"""The engine: batches, the queue, cancelling, and models that come and go."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from live_server import wait_until
from lora_pipelines import add_adapter, save_adapter

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.embedded import EMBEDDED_FOLDERS
from audiox_diffusers.generation.loading import Placement
from audiox_diffusers.media import load_audio
from audiox_diffusers.serving.engine import Engine
from audiox_diffusers.serving.errors import ServingError
from audiox_diffusers.serving.limits import Limits
from audiox_diffusers.serving.models import Models

QUICK = {"input": "rain", "audio_length": 0.5, "num_inference_steps": 2}
# Runs until it is cancelled.
ENDLESS = {"input": "rain", "num_inference_steps": 1000}


def build(folder: Path, models=("audiox-tiny",), loras=(), **limits) -> Engine:
    limits = Limits(**limits)
    placement = Placement(torch.device("cpu"))
    loaded = Models([str(model) for model in models], [str(lora) for lora in loras], placement, limits)
    return Engine(loaded, folder, limits)


@pytest.fixture
def make_engine(tmp_path):
    """Return a function that starts an engine; it is closed at the end, and leaves no files."""
    engines = []

    def make(**options) -> Engine:
        folder = tmp_path / f"engine-{len(engines)}"
        folder.mkdir()
        engines.append(build(folder, **options).start())
        return engines[-1]

    yield make
    for engine in engines:
        engine.close(grace_s=0)
        assert list(engine.folder.iterdir()) == []


def status_of(error) -> int:
    return error.value.status


def test_sounds_do_not_depend_on_their_batch(make_engine):
    engine = make_engine()
    prompts = ["rain", "a bell", "rain", "a siren", None]
    blocker = engine.submit(ENDLESS)
    wait_until(lambda: blocker.status == "running")
    jobs = [engine.submit({**QUICK, "input": prompt or "beep", "seed": seed}) for seed, prompt in enumerate(prompts)]
    other = engine.submit({**QUICK, "num_inference_steps": 3, "seed": 0})
    assert [engine.position(job) for job in (*jobs, other)] == list(range(6))
    engine.cancel(blocker)
    assert all(job.wait(20) for job in (*jobs, other))
    text = engine.describe_metrics()
    # The blocker, five sounds in one batch, and the one with other settings.
    assert "audiox_batch_sounds_count 3.0" in text and "audiox_batch_sounds_sum 7.0" in text
    for seed, (job, prompt) in enumerate(zip(jobs, prompts, strict=True)):
        alone = engine.submit({**QUICK, "input": prompt or "beep", "seed": seed})
        assert alone.wait(20)
        first, second = (load_audio(item.results[0])[0] for item in (job, alone))
        assert (first - second).abs().max() <= 1e-4


def test_a_full_queue_refuses_with_the_time_to_wait(make_engine):
    engine = make_engine(max_queue=2)
    blocker = engine.submit(ENDLESS)
    wait_until(lambda: blocker.status == "running")
    waiting = [engine.submit(QUICK) for _ in range(2)]
    with pytest.raises(ServingError, match=r"the queue is full \(2 requests\); try again in about \d+ s") as error:
        engine.submit(QUICK)
    assert status_of(error) == 429 and error.value.retry_after_s >= 1
    # A cancelled job frees its place.
    engine.cancel(waiting[0])
    assert waiting[0].status == "cancelled"
    waiting.append(engine.submit(QUICK))
    engine.cancel(blocker)
    assert all(job.wait(20) for job in waiting)
    assert [job.status for job in waiting] == ["cancelled", "succeeded", "succeeded"]


def test_cancel_stops_at_the_next_step_and_frees_the_place(make_engine):
    engine = make_engine()
    job = engine.submit(ENDLESS)
    wait_until(lambda: job.step >= 2)
    engine.cancel(job)
    step = job.step
    assert job.wait(5) and job.status == "cancelled" and job.step <= step + 1
    assert engine.submit(QUICK).wait(20)
    engine.remove(job)
    with pytest.raises(ServingError) as error:
        engine.get(job.id)
    assert status_of(error) == 404


def test_a_cancelled_job_leaves_its_batch_alone(make_engine):
    engine = make_engine()
    blocker = engine.submit(ENDLESS)
    wait_until(lambda: blocker.status == "running")
    jobs = [engine.submit({**QUICK, "num_inference_steps": 20, "seed": 1}) for _ in range(2)]
    engine.cancel(blocker)
    wait_until(lambda: jobs[0].step >= 1)
    engine.remove(jobs[0])
    assert jobs[1].wait(20) and jobs[1].status == "succeeded"
    # Its files go when its batch has ended.
    wait_until(lambda: not jobs[0].task.folder.exists())
    assert jobs[0].status == "cancelled"


def test_a_failure_is_that_of_one_job(make_engine, monkeypatch):
    """As for one sound whose file cannot be used, in a batch with others."""
    engine = make_engine()
    blocker = engine.submit(ENDLESS)
    wait_until(lambda: blocker.status == "running")
    jobs = [engine.submit({**QUICK, "seed": seed}) for seed in (1, 2, 3)]
    original = AudioXPipeline.__call__

    def fail(self, *args, generator=None, **kwargs):
        if any(item.initial_seed() == 2 for item in generator):
            raise ValueError(f"{jobs[1].task.folder}/video: cannot be decoded")
        return original(self, *args, generator=generator, **kwargs)

    monkeypatch.setattr(AudioXPipeline, "__call__", fail)
    engine.cancel(blocker)
    assert all(job.wait(20) for job in jobs)
    assert [job.status for job in jobs] == ["succeeded", "failed", "succeeded"]
    # The path of the server is not shown.
    assert jobs[1].error.message == "video: cannot be decoded" and jobs[1].error.status == 400


def test_internal_errors_reveal_nothing_and_the_engine_works_on(make_engine, monkeypatch, caplog):
    engine = make_engine()
    wait_until(lambda: engine.ready)

    def fail(*args, **kwargs):
        raise RuntimeError("secret of the server")

    with monkeypatch.context() as patch:
        patch.setattr(AudioXPipeline, "__call__", fail)
        job = engine.submit(QUICK)
        assert job.wait(20)
    assert job.error.status == 500 and "secret" not in job.error.message
    assert "secret of the server" in caplog.text
    job = engine.submit(QUICK)
    assert job.wait(20) and job.status == "succeeded"


def test_shutdown_fails_what_waits_and_finishes_what_runs(make_engine):
    engine = make_engine()
    running = engine.submit({**QUICK, "num_inference_steps": 20})
    wait_until(lambda: running.step >= 1)
    waiting = engine.submit({**QUICK, "num_inference_steps": 3})
    engine.begin_shutdown(grace_s=20)
    assert waiting.wait(1) and waiting.error.status == 503
    assert running.wait(20) and running.status == "succeeded"
    with pytest.raises(ServingError) as error:
        engine.submit(QUICK)
    assert status_of(error) == 503


def test_shutdown_cancels_what_does_not_finish(make_engine):
    engine = make_engine()
    job = engine.submit(ENDLESS)
    wait_until(lambda: job.step >= 1)
    engine.close(grace_s=0.1)
    # A step can take longer than `close` waits.
    assert job.wait(20)
    assert job.status == "failed" and job.error.code == "shutting_down"
    assert not [thread for thread in threading.enumerate() if thread is engine._thread]


def test_results_expire(make_engine):
    engine = make_engine(result_lifetime_s=0.5)
    job = engine.submit(QUICK)
    assert job.wait(20) and job.results[0].is_file()
    wait_until(lambda: not job.task.folder.exists())
    with pytest.raises(ServingError):
        engine.get(job.id)


def test_results_have_a_total_size(make_engine):
    engine = make_engine(max_results_bytes=40_000)
    jobs = [engine.submit({**QUICK, "seed": seed}) for seed in range(3)]  # 16 kB each
    assert all(job.wait(20) for job in jobs)
    wait_until(lambda: not jobs[0].task.folder.exists())
    assert jobs[2].results[0].is_file()


@pytest.fixture(scope="module")
def two_models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        shutil.copytree(EMBEDDED_FOLDERS["audiox-tiny"], folder / name)
    return [folder / "first", folder / "second"]


def test_models_share_the_memory(make_engine, two_models):
    engine = make_engine(models=two_models, max_memory_bytes=50_000_000)  # each model takes 39 MB
    for name in ("first", "second", "first"):
        job = engine.submit({**QUICK, "model": name})
        assert job.wait(60) and job.status == "succeeded", job.error
        assert list(engine.models.loaded) == [name]
    with pytest.raises(ServingError, match="'third' is not served here, use one of first, second"):
        engine.submit({**QUICK, "model": "third"})


def test_a_model_that_is_too_large_is_refused(make_engine, two_models):
    engine = make_engine(models=two_models, max_memory_bytes=1_000_000)
    job = engine.submit(QUICK)
    assert job.wait(60)
    assert job.error.status == 503 and "more than --max-memory allows" in job.error.message
    assert not engine.models.loaded


def test_idle_models_are_unloaded_and_load_again(make_engine):
    engine = make_engine(idle_unload_s=0.5)
    wait_until(lambda: engine.ready)
    wait_until(lambda: not engine.models.loaded)
    job = engine.submit(QUICK)
    assert job.wait(60) and job.status == "succeeded"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Two random adapters for the embedded model."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("warm", "cold")):
        pipe = AudioXPipeline.from_pretrained("audiox-tiny")
        add_adapter(pipe, seed=seed, target_modules=["to_q", "to_v"])
        save_adapter(pipe, folder / name)
    return [folder / "warm", folder / "cold"]


def test_adapters_by_name(make_engine, adapters):
    engine = make_engine(loras=adapters)

    def sound(**body) -> np.ndarray:
        job = engine.submit({**QUICK, "seed": 1, "num_inference_steps": 4, **body})
        assert job.wait(30) and job.status == "succeeded", job.error
        return load_audio(job.results[0])[0].numpy()

    plain, warm, cold = sound(), sound(lora="warm"), sound(lora="cold")
    assert not np.array_equal(plain, warm) and not np.array_equal(warm, cold)
    assert np.array_equal(sound(lora={"warm": 1}), warm)
    half = sound(lora={"warm": 0.5, "cold": 0.5})
    assert not any(np.array_equal(half, other) for other in (plain, warm, cold))
    assert np.array_equal(sound(), plain)
    with pytest.raises(ServingError, match="no adapter 'hot', use one of warm, cold") as error:
        engine.submit({**QUICK, "lora": "hot"})
    assert error.value.param == "lora"


def test_models_need_names_of_their_own(tmp_path, two_models):
    with pytest.raises(ValueError, match="--model: two have the same name"):
        build(tmp_path, models=[two_models[0], two_models[0]])
