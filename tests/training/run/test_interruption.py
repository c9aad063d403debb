"""A run stops when its launcher ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

CHILD = """
import pathlib, sys, time
from audiox_diffusers.training.run.interruption import Interruption
with Interruption() as interruption:
    pathlib.Path("ready").touch()
    for _ in range(200):
        if interruption.signalled:
            pathlib.Path("stopped").touch()
            break
        time.sleep(0.05)
    else:
        pathlib.Path("ignored").touch()
"""
LAUNCHER = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {CHILD!r}])
"""


def wait_for(*paths: Path) -> Path:
    for _ in range(1200):
        for path in paths:
            if path.exists():
                return path
        time.sleep(0.05)
    raise TimeoutError(f"none of {', '.join(map(str, paths))} after 60 s")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("launched", [True, False], ids=["accelerate", "shell"])
def test_the_launcher_dies(tmp_path, sent, launched):
    """Only the death of `accelerate launch` counts: a run that was started with nohup outlives its shell."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    if launched:
        environment["ACCELERATE_MIXED_PRECISION"] = "no"
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], cwd=tmp_path, env=environment)
    wait_for(tmp_path / "ready")
    launcher.send_signal(sent)
    launcher.wait()
    expected = "stopped" if launched else "ignored"
    assert wait_for(tmp_path / "stopped", tmp_path / "ignored").name == expected


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_audiox.py", "train_audiox_lora.py", "train_vae.py"])
def test_accelerate_launch_is_stopped(small_model, scenes, tmp_path, script):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", ROOT / "training" / script]
    command += ["--dataset", scenes, "--output_dir", "out"]
    command += ["--max_train_steps", 10000, "--checkpointing_steps", 10000]
    if script == "train_vae.py":
        command += ["--vae_config", ROOT / "training" / "configs" / "vae_16khz_mono.json", "--segment_frames", 4]
    else:
        command += ["--pretrained_model_name_or_path", small_model, "--dataloader_num_workers", 1]
    with (tmp_path / "output").open("w") as output:
        launcher = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(tmp_path / "out" / "log.jsonl")
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()
        for _ in range(600):
            if "resume with --resume_from_checkpoint latest" in (tmp_path / "output").read_text():
                break
            time.sleep(0.1)
        steps = len((tmp_path / "out" / "log.jsonl").read_text().splitlines())
        assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [f"checkpoint-{steps}"]
    finally:
        # The processes of the group that are left end by themselves, unless the test failed.
        if left := _group(launcher.pid):
            os.killpg(launcher.pid, signal.SIGKILL)
            assert not left, (tmp_path / "output").read_text()


def _group(number: int) -> bool:
    for _ in range(100):
        try:
            os.killpg(number, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True
