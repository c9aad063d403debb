"""Nested states as safetensors and JSON."""

import json
import math

import pytest
import torch
from helpers import assert_equal, refused
from safetensors.torch import load_file, save_file

from audiox_diffusers.training.run.optimizer_state import load_optimizer, optimizer_state
from audiox_diffusers.training.run.state_files import CheckpointError, check_like, read_state, write_state

SHARED = torch.arange(4.0)
STATES = [
    {"state": {0: {"exp_avg": torch.randn(2, 3), "step": torch.tensor(3.0)}, 12: {}}, "param_groups": [{"lr": 1e-3}]},
    {"betas": (0.9, 0.999), "nested": [[], {}, (), [None, True, 7, -2.5, "text", "$tensor"]]},
    {"best": math.inf, "worst": -math.inf, "0": "a name of digits", "dotted.name": torch.zeros(0, 3)},
    {"int8": torch.arange(-3, 3, dtype=torch.int8), "half": torch.ones(2, dtype=torch.bfloat16), "bool": SHARED > 1},
    {"view": SHARED[1:3], "same": SHARED, "transposed": torch.arange(6).view(2, 3).T},
    {"sum": 0.1 + 0.2, "scalar": torch.tensor(5)},
]


@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_states_come_back(tmp_path, state):
    """Types, values and keys are the same. The bits of numbers too."""
    write_state(tmp_path, "part", state)
    assert {path.name for path in tmp_path.iterdir()} == {"part.json", "part.safetensors"}
    found = read_state(tmp_path, "part")
    check_like(found, state, "part")
    assert_equal(tensors_of(found), tensors_of(state))
    assert repr(found) == repr(state)


def tensors_of(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def test_nan_comes_back(tmp_path):
    write_state(tmp_path, "part", {"loss": math.nan})
    assert math.isnan(read_state(tmp_path, "part")["loss"])


@pytest.mark.parametrize("value", [{1, 2}, object(), {"$tensor": 1}, {"a/b": 1}, {1: 2, "a": 3}, {2.5: 1}, b"bytes"])
def test_values_that_cannot_be_written(tmp_path, value):
    with pytest.raises(TypeError, match="a checkpoint cannot have"):
        write_state(tmp_path, "part", {"outer": [value]})


def edited(folder, change) -> None:
    path = folder / "part.json"
    structure = json.loads(path.read_text())
    change(structure)
    path.write_text(json.dumps(structure))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("weight"), "it does not list weight, which part.safetensors has"),
        (
            lambda state: state.update(more={"$tensor": ["float32", [2]]}),
            "it lists the tensor more, which the safeten",
        ),
        (lambda state: state["weight"].update({"$tensor": ["float32", [3, 2]]}), "it says that weight is"),
        (lambda state: state["weight"].update({"$tensor": ["float16", [2, 3]]}), "it says that weight is"),
        (lambda state: state["weight"].update({"$tensor": None}), "it says that weight is"),
        (lambda state: state.update(more={"$class": "os.system"}), "unknown name '$class' in more"),
        (lambda state: state.update(more={"$float": "1e5"}), "unknown name '$float'"),
        (lambda state: state.update(more={"$numbered": {"x": 1}}), "invalid literal for int"),
        (lambda state: state.update(more=math.nan), "JSON has no NaN"),
        (lambda state: state.update(more=math.inf), "JSON has no Infinity"),
    ],
)
def test_edited_structure(tmp_path, change, reason):
    write_state(tmp_path, "part", {"weight": torch.zeros(2, 3), "step": 1})
    edited(tmp_path, change)
    with refused("part.json cannot be used", reason, error=CheckpointError):
        read_state(tmp_path, "part")


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": [1, 2', "\xff", "[" * 100_000, "1" * 10_000, "not JSON", "[]", "null"]
)
def test_files_that_are_not_json(tmp_path, text):
    write_state(tmp_path, "part", {"step": 1})
    (tmp_path / "part.json").write_bytes(text.encode("latin1"))
    with refused("part.json cannot be used: ", error=CheckpointError):
        read_state(tmp_path, "part")


def test_tensors_of_another_file(tmp_path):
    write_state(tmp_path, "part", {"weight": torch.zeros(2, 3)})
    for tensors in ({"weight": torch.zeros(6)}, {"bias": torch.zeros(2, 3)}, {}):
        save_file(tensors, tmp_path / "part.safetensors")
        with refused("part.json cannot be used", "weight", error=CheckpointError):
            read_state(tmp_path, "part")
    for damage in (b"", b"\xff" * 100, (tmp_path / "part.safetensors").read_bytes()[:-1]):
        (tmp_path / "part.safetensors").write_bytes(damage)
        with refused("part.safetensors cannot be used: it is not a safetensors file", error=CheckpointError):
            read_state(tmp_path, "part")
    (tmp_path / "part.safetensors").unlink()
    with refused("part.safetensors cannot be used: it is missing", error=CheckpointError):
        read_state(tmp_path, "part")


def test_the_file_can_be_removed_while_its_tensors_are_in_use(tmp_path):
    """A mapping of the file would keep its space on the disk."""
    write_state(tmp_path, "part", {"weight": torch.ones(1000)})
    weight = read_state(tmp_path, "part")["weight"]
    with open(tmp_path / "part.safetensors", "r+b") as file:
        file.truncate(0)
    assert weight.sum() == 1000


LIKE = {"tensor": torch.zeros(2, 3), "float": 1.0, "int": 2, "flag": True, "name": "x", "none": None, "list": [1, 2.0]}


@pytest.mark.parametrize(
    "changed",
    [
        {"tensor": torch.zeros(3, 2)},
        {"tensor": torch.zeros(2, 3, dtype=torch.float64)},
        {"tensor": 1.0},
        {"float": math.nan},
        {"float": "1.0"},
        {"float": True},
        {"int": 2.0},
        {"int": True},
        {"flag": 1},
        {"name": None},
        {"none": 0},
        {"list": [1]},
        {"list": (1, 2.0)},
        {"list": {}},
        {"more": 1},
    ],
    ids=str,
)
def test_values_unlike_the_present_ones(changed):
    (name,) = changed
    check_like({**LIKE, "float": 7, "int": -1, "name": "other"}, LIKE, "part")
    with refused("part", name):
        check_like({**LIKE, **changed}, LIKE, "part")


def trained(optimizer_class: type, **options) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (2, 2))]
    optimizer = optimizer_class(parameters, lr=0.1, **options)
    return optimizer, parameters


def step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = parameter.detach() ** 2
    optimizer.step()


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
        (torch.optim.Muon, {}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_optimizers_continue_exactly(tmp_path, optimizer_class, options):
    optimizer, parameters = trained(optimizer_class, **options)
    step(optimizer, parameters)
    write_state(tmp_path, "optimizer", optimizer_state(optimizer))
    resumed, copies = trained(optimizer_class, **options)
    with torch.no_grad():
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.copy_(parameter)
    load_optimizer(resumed, read_state(tmp_path, "optimizer"))
    for both in ((optimizer, parameters), (resumed, copies)):
        step(*both)
        step(*both)
    assert_equal([copy.detach() for copy in copies], [parameter.detach() for parameter in parameters])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda state: state["state"][0].update(exp_avg=torch.zeros(2, 2)),
            "state/0/exp_avg must have the shape [3, 2]",
        ),
        (lambda state: state["state"][0].update(exp_avg=3.0), "state/0/exp_avg must have the shape [3, 2], got 3.0"),
        (lambda state: state["state"][1].pop("step"), "state/1/step differs from that of the other parameters"),
        (lambda state: state["state"].update({2: {}}), "state/2 must be the state of a parameter"),
        (lambda state: state.update(state=[]), "optimizer/state must be by parameter, got []"),
        (lambda state: state["param_groups"][0].update(lr="fast"), "param_groups/0/lr must be a number, got 'fast'"),
        (lambda state: state["param_groups"][0].pop("betas"), "param_groups/0 must have"),
        (lambda state: state["param_groups"][0].update(params=[0]), "param_groups/0/params must have 2 items, got 1"),
        (lambda state: state["param_groups"].append({}), "param_groups must have 1 items, got 2"),
    ],
)
def test_edited_optimizers(change, reason):
    optimizer, parameters = trained(torch.optim.AdamW)
    step(optimizer, parameters)
    state = optimizer_state(optimizer)
    change(state)
    with refused(reason):
        load_optimizer(trained(torch.optim.AdamW)[0], state)


def test_files_are_plain_safetensors(tmp_path):
    """Other programs can read them."""
    optimizer, parameters = trained(torch.optim.AdamW)
    step(optimizer, parameters)
    write_state(tmp_path, "optimizer", {"optimizer": optimizer_state(optimizer)})
    tensors = load_file(tmp_path / "optimizer.safetensors")
    assert_equal(tensors["optimizer/state/1/exp_avg"], optimizer.state[parameters[1]]["exp_avg"])
    group = json.loads((tmp_path / "optimizer.json").read_text())["optimizer"]["param_groups"][0]
    assert group["lr"] == 0.1 and group["betas"] == {"$tuple": [0.9, 0.999]}
