"""Distillation runs of the small model: losses, resuming, exports and refusals."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import assert_equal, refused
from lora_pipelines import build_pipeline
from safetensors.torch import load_file

from audiox_diffusers import (
    AudioXDPMSolverSDEScheduler,
    AudioXFlowMatchScheduler,
    AudioXInpaintPipeline,
    AudioXPipeline,
)
from audiox_diffusers.training import Trainer


@pytest.fixture
def distill(train_student):
    """Distill the small model with guidance 2 to two steps: `distill(output, steps, *options)` -> losses by step."""
    usual = ["--teacher_guidance_scale", 2, "--num_student_steps", 2, "--fake_updates", 1]
    return lambda output, steps, *options: train_student(output, steps, *usual, *options)


@pytest.fixture(scope="module")
def flow_model(tmp_path_factory):
    """A small MMDiT with rectified flow."""
    pipe = build_pipeline("mmdit")
    pipe.scheduler = AudioXFlowMatchScheduler()
    folder = tmp_path_factory.mktemp("flow") / "small-flow"
    pipe.save_pretrained(folder)
    return folder


def reports(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


METHODS = {
    "full": ["--ode_steps", 1, "--ode_pairs", 2, "--teacher_steps", 4],
    "adapter": ["--student", "adapter", "--rank", 2],
    "consistency": ["--method", "consistency"],
    "consistency adapter": ["--method", "consistency", "--student", "adapter", "--rank", 2],
}


@pytest.mark.parametrize("name", METHODS)
def test_resume_is_exact(distill, tmp_path, name):
    options = [*METHODS[name], "--checkpointing_steps", 2, "--gradient_accumulation_steps", 2]
    unbroken = distill("whole", 4, *options)
    distill("broken", 2, *options)
    assert distill("broken", 4, *options, "--resume_from_checkpoint", "latest") == unbroken
    assert len(set(unbroken.values())) == 4
    first, second = (load_file(tmp_path / run / "checkpoint-4" / "model.safetensors") for run in ("whole", "broken"))
    assert_equal(first, second)


def test_sigterm_between_the_updates_loses_nothing(distill, tmp_path, monkeypatch):
    options = ["--fake_updates", 2]
    unbroken = distill("whole", 3, *options)
    before = Trainer._next_batch
    calls = []

    def interrupt(trainer, batches):
        calls.append(trainer.step)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(trainer, batches)

    monkeypatch.setattr(Trainer, "_next_batch", interrupt)
    assert list(distill("broken", 3, *options)) == [1]
    monkeypatch.undo()
    assert distill("broken", 3, *options, "--resume_from_checkpoint", "latest") == unbroken


@pytest.mark.parametrize("student", ["full", "adapter"])
def test_without_guidance_the_first_update_changes_nothing(distill, tmp_path, student):
    """Teacher and fake score are equal at first. The fake score must not have been updated, so its rate is tiny."""
    distill("out", 1, "--student", student, "--teacher_guidance_scale", 1, "--fake_learning_rate", 1e-30)
    (report,) = reports(tmp_path / "out")
    assert report["gradient"] == 0 and report["loss"] == 0 and report["fake_loss"] > 0


def test_adapters_and_copies_begin_with_the_same_gradient(distill, tmp_path):
    for student in ("full", "adapter"):
        distill(student, 1, "--student", student, "--fake_learning_rate", 1e-30)
    full, adapter = (reports(tmp_path / student)[0] for student in ("full", "adapter"))
    assert full["gradient"] > 0
    for name in ("loss", "gradient", "teacher_error", "fake_loss"):
        assert adapter[name] == pytest.approx(full[name], rel=1e-4)


def test_gradient_checkpointing_changes_nothing(distill):
    """Checkpointed blocks run again in the backward pass, when another adapter may be active."""
    options = ["--student", "adapter", "--rank", 2]
    expected = distill("plain", 3, *options)
    assert distill("checkpointed", 3, *options, "--gradient_checkpointing") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["dmd", "consistency"])
def test_a_plain_call_of_the_student_takes_its_steps_without_guidance(distill, tmp_path, method):
    distill("out", 2, "--method", method)
    pipe = AudioXPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, AudioXDPMSolverSDEScheduler)
    calls, forward = [], pipe.transformer.forward
    pipe.transformer.forward = lambda hidden_states, *args, **kwargs: (
        calls.append(len(hidden_states)) or forward(hidden_states, *args, **kwargs)
    )
    pipe.set_progress_bar_config(disable=True)
    audio = pipe(prompt="a bell", generator=torch.Generator().manual_seed(0)).audios
    assert calls == [1, 1] and torch.isfinite(torch.from_numpy(audio)).all()
    with refused("`num_inference_steps` is 3", "distilled for 2 steps"):
        pipe(prompt="a bell", num_inference_steps=3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "distilled to 2 steps without guidance" in card and "- teacher guidance: 2" in card


def test_a_student_inpaints_extends_and_makes_long_sounds(distill, tmp_path):
    distill("out", 1)
    pipe = AudioXInpaintPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    sound = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    inpainted = torch.from_numpy(
        pipe((sound, 8000), "a bell", inpaint_spans=[(0.5, 1.0)], num_refinements=1).audios[0]
    )
    assert inpainted.isfinite().all() and not torch.equal(inpainted[:, 4000:8000], sound[:, 4000:8000])
    torch.testing.assert_close(inpainted[:, 10_000:], sound[:, 10_000:], rtol=0, atol=1e-6)
    extended = torch.from_numpy(pipe((sound, 8000), "a bell", extend_by_s=1.0).audios[0])
    assert extended.shape[1] == 24_000 and extended.isfinite().all()
    generated = AudioXPipeline.from_pipe(pipe)(prompt="a bell", audio_length_in_s=5.0).audios[0]
    assert generated.shape[1] == 40_000


def test_an_adapter_loads_with_its_scheduler(distill, tmp_path, small_model):
    distill("out", 2, "--student", "adapter", "--rank", 2)
    pipe = AudioXPipeline.from_pretrained(small_model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_pretrained(tmp_path / "out", subfolder="scheduler")
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
    plain = pipe(prompt="a bell", generator=torch.Generator().manual_seed(0), **settings).audios
    pipe.load_lora_weights(tmp_path / "out")
    adapted = pipe(prompt="a bell", generator=torch.Generator().manual_seed(0), **settings).audios
    assert abs(adapted - plain).max() > 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'subfolder="scheduler"' in card and "num_inference_steps=2, guidance_scale=1.0" in card


@pytest.mark.parametrize("name", ["full", "adapter"])
def test_rectified_flow_with_an_mmdit(distill, flow_model, tmp_path, name):
    losses = distill("out", 2, *METHODS[name], "--pretrained_model_name_or_path", flow_model)
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses.values())
    scheduler = AudioXFlowMatchScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    assert scheduler.config.stochastic_sampling and scheduler.config.distilled_timesteps == [1.0, 0.5]


SCRIPT = """
import sys
from audiox_diffusers.training import DistillTraining, main
main(sys.argv[1:], DistillTraining)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "adapter"])
def test_two_processes_distill_as_one_does(distill, small_model, scenes, tmp_path, name):
    options = [*METHODS[name], "--train_batch_size", 1, "--teacher_guidance_scale", 2, "--num_student_steps", 2]
    options += ["--fake_updates", 1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    (tmp_path / "script.py").write_text(SCRIPT)
    command += [tmp_path / "script.py", "--pretrained_model_name_or_path", small_model, "--dataset", scenes]
    command += ["--output_dir", tmp_path / "two", "--max_train_steps", 3, "--learning_rate", 1e-3]
    command += ["--dataloader_num_workers", 0, "--shuffle_buffer_size", 4, "--gradient_accumulation_steps", 1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([str(word) for word in (*command, *options)], env=environment, check=True, timeout=300)
    # One process with twice the accumulation and a worker for each of the two takes the same samples.
    expected = distill("one", 3, *options, "--gradient_accumulation_steps", 2, "--dataloader_num_workers", 2)
    found = {report["step"]: report["loss"] for report in reports(tmp_path / "two")}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num_student_steps", 0], ["--num_student_steps must be at least 1, got 0"]),
        (["--student_timesteps", 0.9], ["--student_timesteps must have --num_student_steps 2 times, got 1"]),
        (["--student_timesteps", 0.5, 0.9], ["--student_timesteps must be decreasing"]),
        (["--student_timesteps", 1.0, 0.5], ["--student_timesteps", "at most 0.99"]),
        (["--mixed_precision", "fp16"], ["--mixed_precision fp16", "bf16"]),
        (["--snr_gamma", 5], ["--snr_gamma does not apply"]),
        (["--student", "adapter", "--target_modules", "to_x"], ["--target_modules to_x"]),
    ],
)
def test_bad_options_are_refused(distill, options, words):
    with refused(*words):
        distill("out", 1, *options)


def test_wrong_teachers_are_refused(train_student, distill, tmp_path):
    with refused("--teacher_guidance_scale is missing", "default is 1"):
        train_student("out", 1)
    distill("student", 1)
    with refused("student is a few-step model already"):
        distill("out", 1, "--pretrained_model_name_or_path", tmp_path / "student")
