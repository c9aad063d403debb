import math

import pytest
import torch

from audiox_diffusers.training.lr_schedules import LR_SCHEDULERS, get_lr_scheduler


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(scheduler, steps: int) -> list[float]:
    """Return the learning rate of each step."""
    values = []
    for _ in range(steps):
        values.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return values


def test_inverse_sqrt():
    """Peak 2 and decay 1/2 give 2 * 1/2, 2 * 3/4 / sqrt(4/3), 2 * 7/8 / sqrt(5/3), 2 * 15/16 / sqrt(2)."""
    scheduler = get_lr_scheduler("inverse_sqrt", optimizer(), inv_gamma=3, warmup_decay=0.5)
    expected = [1, 1.5 * math.sqrt(3 / 4), 1.75 * math.sqrt(3 / 5), 1.875 / math.sqrt(2)]
    assert rates(scheduler, 4) == pytest.approx(expected)


def test_inverse_sqrt_with_the_settings_of_the_paper():
    """The warmup takes some hundred steps, and a million steps decay to `1 / sqrt(2)`."""
    scheduler = get_lr_scheduler("inverse_sqrt", optimizer())
    values = rates(scheduler, 1000)
    assert values[0] == pytest.approx(2 * 0.01)
    assert values[99] == pytest.approx(2 * (1 - math.exp(-1)), rel=0.01)
    assert values[999] == pytest.approx(2 * (1 - 0.0005), rel=1e-3)
    assert scheduler.lr_lambdas[0](1_000_000) == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_resume(name):
    options = {"num_warmup_steps": 3, "num_training_steps": 20, "num_cycles": 2, "inv_gamma": 10}
    straight = rates(get_lr_scheduler(name, optimizer(), **options), 20)
    first = get_lr_scheduler(name, optimizer(), **options)
    rates(first, 8)
    second = get_lr_scheduler(name, optimizer(), **options)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 12) == straight[8:]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [2, 2, 2, 2, 2, 2]),
        ("constant_with_warmup", [0, 1, 2, 2, 2, 2]),
        ("linear", [0, 1, 2, 1.5, 1, 0.5]),
        ("cosine", [0, 1, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)]),
        ("cosine_with_restarts", [0, 1, 2, 1, 2, 1]),
        ("polynomial", [0, 1, 2, 1.125, 0.5, 0.125]),
    ],
)
def test_schedules_of_diffusers(name, expected):
    options = {"num_warmup_steps": 2, "num_training_steps": 6, "num_cycles": 2, "power": 2.0}
    assert rates(get_lr_scheduler(name, optimizer(), **options), 6) == pytest.approx(expected, abs=1e-6)


def test_unknown_name():
    with pytest.raises(ValueError, match="`lr_scheduler` must be one of .*inverse_sqrt, got 'step'"):
        get_lr_scheduler("step", optimizer())


def test_num_training_steps_is_missing():
    with pytest.raises(ValueError, match="`num_training_steps`"):
        get_lr_scheduler("cosine", optimizer())
