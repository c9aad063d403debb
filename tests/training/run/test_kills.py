"""Runs that get signals while they write files, and then resume."""

import json
import signal
import subprocess
import sys

import pytest

# Each run is a fork of this process, which has computed nothing. A run sends itself a signal just before it opens or
# renames a file of a checkpoint.
DRIVER = """
import json, os, sys
from audiox_diffusers.training import FullTraining, Trainer, parse_args

def run(options, number=0, moment=0):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = 0
    def watch(event, given):
        nonlocal seen
        writes = event == "os.rename" or event == "open" and "w" in str(given[1])
        if writes and "checkpoint-" in str(given[0]):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), number)
    sys.addaudithook(watch)
    Trainer(parse_args(options, FullTraining), FullTraining).train()
    os._exit(0)

given, signals = json.loads(sys.argv[1]), json.loads(sys.argv[2])
assert run([*given, "--output_dir", "unbroken"]) == 0
broken = [*given, "--output_dir", "broken", "--checkpointing_steps", "1", "--resume_from_checkpoint", "latest"]
codes = [run(broken, *item) for item in signals]
codes.append(run(broken))
print(json.dumps(codes))
"""


@pytest.mark.slow
def test_losses_are_those_of_a_run_without_signals(small_model, scenes, tmp_path):
    """A checkpoint with averages has six such moments: five files of JSON, and the name of the folder."""
    options = [
        "--pretrained_model_name_or_path",
        small_model,
        "--dataset",
        scenes,
        "--max_train_steps",
        6,
        "--use_ema",
    ]
    options += ["--dataloader_num_workers", 0, "--shuffle_buffer_size", 4, "--learning_rate", 1e-3]
    options += ["--train_batch_size", 2, "--lr_scheduler", "cosine"]
    signals = [(signal.SIGKILL, 2), (signal.SIGTERM, 1), (signal.SIGKILL, 6), (signal.SIGKILL, 10)]
    command = [sys.executable, "-c", DRIVER, json.dumps([str(word) for word in options]), json.dumps(signals)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    ended = [-signal.SIGKILL if number == signal.SIGKILL else 0 for number, _ in signals]
    assert json.loads(result.stdout.splitlines()[-1]) == [*ended, 0]

    def losses(name: str) -> dict[int, float]:
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return {report["step"]: report["loss"] for report in map(json.loads, lines)}

    assert losses("broken") == losses("unbroken")
    assert list(losses("broken")) == [1, 2, 3, 4, 5, 6]
