"""Pipelines and training on a device that is not the CPU: the same numbers, and few waits for the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("scenarios.py")


def run(group: str, *steps: int) -> dict[str, dict]:
    command = [sys.executable, str(SCRIPT), group, *map(str, steps)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("group", ["generation", "editing"])
def test_pipelines_do_not_wait_in_their_steps(group):
    for name, found in run(group, 3, 6).items():
        assert found["difference"] < 1e-4, name
        few, many = found["waits"]
        assert few == many and 1 <= sum(few.values()), name
        # Not with offloading, which waits for the components.
        if name != "model_offload":
            assert sum(few.values()) <= 10, (name, few)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "steps", "waits_per_step"), [("training", 20, 1), ("distillation", 4, 2)])
def test_a_training_step_waits_once(group, steps, waits_per_step):
    """And once more for each update of the fake score in distillation."""
    for name, found in run(group, 1, steps).items():
        assert found["difference"] < 1e-4, name
        few, many = (sum(waits.values()) for waits in found["waits"])
        assert many - few == (steps - 1) * waits_per_step, (name, found["waits"])


@pytest.mark.slow
def test_activations_and_averages_on_the_cpu_change_nothing():
    (found,) = run("offloading", 1, 3).values()
    assert found["difference"] < 1e-4
