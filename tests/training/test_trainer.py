"""Whole training runs at toy size."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_equal
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from audiox_diffusers import AudioXFlowMatchScheduler, AudioXPipeline
from audiox_diffusers.media import save_audio
from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.training import FullTraining, LoraTraining, Trainer, parse_args
from audiox_diffusers.training.validation import Validation

ROOT = Path(__file__).resolve().parents[2]


def weights(folder: Path, name: str = "transformer") -> dict[str, torch.Tensor]:
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def differs(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(train, tmp_path, workers):
    """Losses and averaged weights are the same. 12 samples of 7 clips cross the ends of blocks and epochs."""
    options = ["--use_ema", "--lr_scheduler", "cosine", "--dataloader_num_workers", workers]
    options += ["--gradient_accumulation_steps", 2]
    unbroken = train("unbroken", 4, *options, "--checkpointing_steps", 1)
    for path in (tmp_path / "unbroken").glob("checkpoint-*"):
        if path.name != "checkpoint-1":
            shutil.rmtree(path)
    expected = weights(tmp_path / "unbroken")
    resumed = train("unbroken", 4, *options, "--resume_from_checkpoint", "latest")
    assert list(resumed) == [1, 2, 3, 4]
    assert resumed == unbroken
    assert_equal(weights(tmp_path / "unbroken"), expected)


def test_sigterm_writes_a_checkpoint_and_resume_is_exact(train, tmp_path, monkeypatch):
    unbroken = train("unbroken", 4)
    report = Trainer._report

    def interrupt(trainer, *args):
        report(trainer, *args)
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_report", interrupt)
    # Sounds would take the time that is left before the run is killed.
    monkeypatch.setattr(Validation, "run", lambda *args: pytest.fail("sounds are made"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a bell"}\n')
    # The signal comes after the step's own look at it: one more step is taken.
    assert list(train("broken", 4, "--validation_prompts", tmp_path / "prompts.jsonl")) == [1, 2]
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "broken" / "transformer").exists()
    assert train("broken", 4, "--resume_from_checkpoint", "latest") == unbroken


@pytest.mark.slow
def test_sigterm_to_the_whole_group(small_model, scenes, tmp_path):
    """Job schedulers send SIGTERM to the decoding workers too."""
    command = [sys.executable, ROOT / "training" / "train_audiox.py", "--output_dir", tmp_path / "out"]
    command += ["--pretrained_model_name_or_path", small_model, "--dataset", scenes, "--max_train_steps", "100000"]
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(timeout=60)
    said = (tmp_path / "output.txt").read_text()
    assert code == 0, said
    steps = len((tmp_path / "out" / "log.jsonl").read_text().splitlines())
    assert f"stopped at step {steps}" in said
    assert (tmp_path / "out" / f"checkpoint-{steps}" / "model.safetensors").exists()


def test_checkpoints_are_limited(train, tmp_path):
    train("out", 5, "--checkpointing_steps", 1, "--checkpoints_total_limit", 2)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}


def test_newest_checkpoint_is_kept_under_a_limit(train, tmp_path):
    train("out", 3)
    (tmp_path / "out" / ".checkpoint-2").mkdir()  # of a write that was cut short
    train("out", 2, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1)
    assert [path.name for path in (tmp_path / "out").glob("*checkpoint-*")] == ["checkpoint-2"]


def steps_of(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_log_has_every_step_once(train, tmp_path, monkeypatch):
    """After kills before the first checkpoint and in the middle of a line, and after a restart."""
    report = Trainer._report

    def killed(trainer, *args):
        report(trainer, *args)
        if trainer.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_report", killed)
    with pytest.raises(KeyboardInterrupt):
        train("out", 3)
    monkeypatch.undo()
    log = tmp_path / "out" / "log.jsonl"
    train("out", 3, "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    assert steps_of(log) == [1, 2, 3]
    with log.open("a") as file:
        file.write('{"step": 4, "lo')
    train("out", 4, "--resume_from_checkpoint", "checkpoint-2")
    assert steps_of(log) == [1, 2, 3, 4]
    train("out", 1)
    assert steps_of(log) == [1]


def test_full_disk_keeps_earlier_checkpoints(train, tmp_path):
    """A limit on the file size stands for the full disk: writing fails in the middle of a file."""
    losses = train("out", 2, "--checkpointing_steps", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(OSError, match=r"checkpoint-3 could not be written.*checkpoint-1, checkpoint-2"):
            train("out", 4, "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").glob(".checkpoint-*"))
    resumed = train("out", 3, "--resume_from_checkpoint", "latest")
    assert {step: resumed[step] for step in losses} == losses and len(resumed) == 3


@pytest.mark.parametrize(
    "option, named",
    [
        (["--seed", 1], "--seed was 0 and is 1"),
        (["--train_batch_size", 1], "--train_batch_size was 2 and is 1"),
        (["--learning_rate", 1e-4], "--learning_rate was 0.001 and is 0.0001"),
        (["--drop_text_rate", 0.5], "--drop_text_rate was 0.1 and is 0.5"),
        (["--dataloader_num_workers", 2], "--dataloader_num_workers was 0 and is 2"),
        (["--use_ema"], "--use_ema was False and is True"),
    ],
)
def test_resume_with_other_arguments(train, option, named):
    train("out", 1)
    with pytest.raises(ValueError, match=named):
        train("out", 2, *option, "--resume_from_checkpoint", "latest")


def test_resume_with_arguments_that_may_change(train):
    train("out", 1)
    options = ["--checkpointing_steps", 1, "--checkpoints_total_limit", 1, "--gradient_checkpointing"]
    assert len(train("out", 2, *options, "--resume_from_checkpoint", "checkpoint-1")) == 2


def test_resume_from_missing_checkpoint(train):
    assert len(train("out", 1, "--resume_from_checkpoint", "latest")) == 1
    with pytest.raises(ValueError, match="checkpoint-7.* has checkpoint-1"):
        train("out", 2, "--resume_from_checkpoint", "checkpoint-7")


def test_resume_of_another_model(train, small_model, tmp_path):
    train("out", 1)
    pipe = AudioXPipeline.from_pretrained(small_model)
    config = {**pipe.transformer.config, "num_layers": 1}
    pipe.transformer = type(pipe.transformer).from_config(config)
    pipe.save_pretrained(tmp_path / "other")
    state = tmp_path / "out" / "checkpoint-1" / "training.json"
    state.write_text(state.read_text().replace(str(small_model), str(tmp_path / "other")))
    with pytest.raises(ValueError, match="transformer.num_layers was 2 and is 1"):
        train("out", 2, "--pretrained_model_name_or_path", tmp_path / "other", "--resume_from_checkpoint", "latest")


def test_cached_latents_give_the_same_losses(train, scenes, tmp_path):
    plain = train("plain", 4)
    cached = train("cached", 4, "--cache_latents", tmp_path / "cache")
    assert cached == pytest.approx(plain, rel=1e-5)
    again = train("again", 4, "--cache_latents", tmp_path / "cache", "--dataloader_num_workers", 1)
    assert again == cached


def test_gradient_checkpointing_changes_nothing(train):
    plain = train("plain", 3)
    assert train("checkpointed", 3, "--gradient_checkpointing") == pytest.approx(plain, rel=1e-5)
    options = ["--gradient_checkpointing", "--gradient_checkpointing_interval", 2]
    assert train("some", 3, *options) == pytest.approx(plain, rel=1e-5)


def test_activation_offloading_changes_nothing(train, tmp_path):
    plain = train("plain", 3)
    assert train("offloaded", 3, "--activation_offloading") == plain
    assert_equal(weights(tmp_path / "offloaded"), weights(tmp_path / "plain"))
    checkpointed = train("both", 3, "--activation_offloading", "--gradient_checkpointing")
    assert checkpointed == pytest.approx(plain, rel=1e-5)


def test_from_scratch_ignores_trained_weights(train, tmp_path):
    train("trained", 2)
    options = ["--pretrained_model_name_or_path", tmp_path / "trained", "--seed", 1]
    fresh = train("fresh", 1, *options, "--from_scratch")
    assert fresh == train("other", 1, "--seed", 1, "--from_scratch")
    assert fresh != train("on", 1, *options)


@pytest.mark.parametrize("options", [["--mixed_precision", "bf16"], ["--snr_gamma", 5]])
def test_options_change_the_losses(train, options):
    plain, other = train("plain", 1), train("other", 1, *options)
    assert 0 < other[1] < 3 and other[1] != plain[1]


def test_frozen_encoders_do_not_change(train, small_model, tmp_path):
    train("out", 1)
    for name in ("text_encoder", "image_encoder", "vae"):
        assert_equal(weights(tmp_path / "out", name), weights(small_model, name))
    for name in ("transformer", "conditioner"):
        assert differs(weights(tmp_path / "out", name), weights(small_model, name))


def test_frozen_encoders_have_the_dtypes_of_inference(small_model):
    """T5 keeps layers that overflow in float16 in float32."""

    def dtypes(pipe: AudioXPipeline, name: str) -> dict[str, torch.dtype]:
        return {key: parameter.dtype for key, parameter in getattr(pipe, name).named_parameters()}

    half = AudioXPipeline.from_pretrained(small_model, dtype=torch.float16)
    options = ["--pretrained_model_name_or_path", small_model, "--dataset", "data", "--output_dir", "out"]
    for method in (FullTraining, LoraTraining):
        args = parse_args([*map(str, options), "--max_train_steps", "1"], method)
        pipe = method(args).load_pipeline(torch.float16)
        for name in ("text_encoder", "image_encoder"):
            assert dtypes(pipe, name) == dtypes(half, name)
        assert len(set(dtypes(pipe, "text_encoder").values())) == 2
        for name in ("vae", "conditioner"):
            assert set(dtypes(pipe, name).values()) == {torch.float32}


@pytest.mark.parametrize("name", ["text_encoder", "image_encoder"])
def test_encoders_can_be_trained(train, small_model, tmp_path, name):
    frozen = train("frozen", 2, "--train_batch_size", 6)
    trained = train("out", 2, "--train_batch_size", 6, f"--train_{name}")
    # The first step starts from the same weights, but T5 has dropout.
    assert trained[1] == pytest.approx(frozen[1], rel=1e-5 if name == "image_encoder" else 0.05)
    assert differs(weights(tmp_path / "out", name), weights(small_model, name))


def test_training_from_the_embedded_model(train, tmp_path):
    data = write_scenes(tmp_path / "data", 2, seconds=4.0, fps=20, size=32)
    losses = train("out", 1, "--pretrained_model_name_or_path", "audiox-tiny", "--dataset", data)
    assert 0 < losses[1] < 10
    start = AudioXPipeline.from_pretrained("audiox-tiny")
    # The package stores it in half precision.
    assert_equal(weights(tmp_path / "out", "vae"), start.vae.half().state_dict())
    assert differs(weights(tmp_path / "out", "transformer"), start.transformer.state_dict())
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "from `audiox-tiny`" in card.text and card.data.base_model is None


def test_rectified_flow(train, small_model, tmp_path):
    pipe = AudioXPipeline.from_pretrained(small_model, scheduler=AudioXFlowMatchScheduler())
    pipe.save_pretrained(tmp_path / "flow")
    losses = train("out", 1, "--pretrained_model_name_or_path", tmp_path / "flow")
    assert losses[1] != train("velocity", 1)[1]
    trained = AudioXPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(trained.scheduler, AudioXFlowMatchScheduler)


def test_export_has_the_averaged_weights(train, small_model, tmp_path):
    train("out", 3, "--use_ema", "--ema_decay", 0.5)
    average = load_file(tmp_path / "out" / "checkpoint-3" / "ema.safetensors")
    last = load_file(tmp_path / "out" / "checkpoint-3" / "model.safetensors")
    exported = weights(tmp_path / "out")
    averaged = {tensor.sum().item() for tensor in average.values()}
    assert all(tensor.sum().item() in averaged for tensor in exported.values())
    assert differs(exported, {key: last[f"transformer.{key}"] for key in exported})

    pipe = AudioXPipeline.from_pretrained(tmp_path / "out")
    assert pipe.config.default_num_inference_steps == 25
    pipe.set_progress_bar_config(disable=True)
    assert torch.isfinite(torch.from_numpy(pipe(prompt="a bell", num_inference_steps=2).audios)).all()


def test_bad_records_are_listed(train, scenes, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [json.loads(line) for line in (scenes / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        (folder / row["file_name"]).write_bytes((scenes / row["file_name"]).read_bytes())
    (folder / rows[2]["file_name"]).write_bytes(b"not a video")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--dataset", folder, "--shuffle_buffer_size", 1, "--checkpointing_steps", 1]
    for resumed in ([], ["--resume_from_checkpoint", "latest"], ["--resume_from_checkpoint", "checkpoint-1"]):
        train("out", 4, *options, *resumed)
        skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
        assert [(row["step"], row["row"], row["epoch"]) for row in skipped] == [(2, 2, 0)]
        assert "not a sound or video file" in skipped[0]["reason"]
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in log] == [0, 1, 1, 1]


def test_output_folder_of_a_vae_can_be_reused(train, tmp_path):
    """The skipped rows of a VAE name no step."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "skipped.jsonl").write_text('{"dataset": "sounds", "row": 3, "reason": "is silent"}\n')
    assert list(train("out", 1)) == [1]
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""


def test_too_many_bad_records_end_the_run(train, scenes, tmp_path):
    """The first look opens files, but does not decode them."""
    save_audio(tmp_path / "silent.wav", np.zeros(48000, np.float32), 24000)
    (tmp_path / "list.jsonl").write_text('{"audio": "silent.wav", "caption": "nothing"}\n')
    with pytest.raises(ValueError, match="--max_bad_records 5.*is silent"):
        train("out", 1, "--dataset", tmp_path / "list.jsonl", "--max_bad_records", 5)
