"""Two runs in one output folder."""

import subprocess
import sys
import time

import pytest
from helpers import refused

from audiox_diffusers.training.run.lock import locked

HOLD = "import sys, time; from pathlib import Path; from audiox_diffusers.training.run.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"


@pytest.fixture
def other_run(tmp_path):
    """Another process that holds the lock."""
    (tmp_path / "out").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_second_run_is_refused_until_the_first_dies(other_run, train, tmp_path):
    before = list((tmp_path / "out").iterdir())
    with refused("--output_dir", "out is in use by another run"):
        train("out", 1)
    assert list((tmp_path / "out").iterdir()) == before
    train("beside", 1)
    other_run.kill()
    other_run.wait()
    assert list(train("out", 1)) == [1]


def test_adapter_is_refused_too(other_run, train_lora):
    with refused("out is in use by another run"):
        train_lora("out", 1)


def test_failed_and_finished_runs_hold_no_lock(train, tmp_path):
    with refused("--resume_from_checkpoint"):
        train("out", 1, "--resume_from_checkpoint", "checkpoint-3")
    train("out", 1)
    with locked(tmp_path / "out"):
        with refused("in use"), locked(tmp_path / "out"):
            time.sleep(0)
    train("out", 2, "--resume_from_checkpoint", "latest")
