import json
from pathlib import Path

import pytest
import yaml
from helpers import refused

from audiox_diffusers import cli
from audiox_diffusers.training import DistillTraining, FullTraining, LoraTraining, Trainer, parse_args
from audiox_diffusers.training.arguments import as_json
from audiox_diffusers.training.config_file import CONFIG

NEEDED = {
    "pretrained_model_name_or_path": "model",
    "dataset": ["data"],
    "output_dir": "out",
    "max_train_steps": 10,
}


@pytest.fixture
def parse(tmp_path):
    """Return `parse(values, *options)`, which writes a config file and parses it."""

    def run(values: object, *options: object, method=FullTraining):
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
        return parse_args(["--config", str(path), *map(str, options)], method)

    return run


def test_a_file_says_what_the_command_line_says(parse):
    values = {
        **NEEDED,
        "learning-rate": "2e-5",
        "adam_epsilon": 1e-9,
        "use_ema": True,
        "gradient_checkpointing": False,
        "task_weights": {"text": 2, "image": 0.5},
        "video_prompt": "a: b, with -- dashes",
        "logit_mean": -1.5,
        "cache_dir": None,
    }
    options = ["--pretrained_model_name_or_path", "model", "--dataset", "data", "--output_dir", "out"]
    options += ["--max_train_steps", "10", "--learning_rate", "2e-5", "--adam_epsilon", "1e-9", "--use_ema"]
    options += ["--task_weights", "text=2", "image=0.5", "--video_prompt", "a: b, with -- dashes", "--logit_mean=-1.5"]
    assert parse(values) == parse_args(options)


def test_the_command_line_comes_first(parse):
    values = {**NEEDED, "use_ema": True, "seed": 1, "datasets": [{"path": "a", "weight": 3}, "b"]}
    del values["dataset"]
    args = parse(values, "--seed", 2, "--use_ema", "false")
    assert (args.seed, args.use_ema, args.max_train_steps) == (2, False, 10)
    for option in ("--dataset", "--dataset_name", "--train_data_dir", "--instance_data_dir"):
        args = parse(values, option, "c")
        assert (args.dataset, args.dataset_weights, args.dataset_options) == (["c"], None, None)
    assert parse(values, "--dataset=c").dataset_options is None


def test_datasets_with_their_own_options(parse):
    values = {
        **NEEDED,
        "caption_column": "text",
        "dataset_split": "test",
        "datasets": [
            {"path": "a", "columns": {"caption": "none", "start": "none"}, "tasks": {"video": 1}, "weight": 3},
            {"path": "b", "start_offset": 0.5, "split": "train", "media_dir": "clips", "revision": "main"},
            "c",
        ],
    }
    del values["dataset"]
    a, b, c = parse(values).datasets()
    assert (a.path, a.weight, a.tasks, a.split) == ("a", 3, {"video": 1}, "test")
    assert a.columns == {"caption": "none", "start": "none"}
    assert (b.start_offset, b.split, b.media_dir, b.revision, b.weight) == (0.5, "train", "clips", "main", 1)
    assert b.columns == c.columns == {"caption": "text"} and c.split == "test"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rat": 1}, ["unknown key 'learning_rat'; did you mean learning_rate?"]),
        ({"epochs_of_training": 1}, ["unknown key 'epochs_of_training'; did you mean "]),
        ({"dataest": ["a"]}, ["unknown key 'dataest'; did you mean dataset"]),
        ({"datasets": [{"path": "a", "wieght": 1}]}, ["datasets[0]", "'wieght'; did you mean weight?"]),
        ({"datasets": ["a", {"path": "a", "columns": {"captoin": "x"}}]}, ["datasets[1].columns", "mean caption?"]),
        ({"datasets": [{"path": "a", "tasks": {"txt": 1}}]}, ["datasets[0].tasks", "'txt'; did you mean text?"]),
        ({"datasets": [{"weight": 1}]}, ["datasets[0] must be a path, or have a path"]),
        ({"datasets": "a"}, ["datasets must be a list"]),
        ({"datasets": []}, ["datasets must be a list with at least one"]),
        ({"datasets": [{"path": "a", "weight": 0}]}, ["datasets[0].weight must be above 0, got 0"]),
        ({"datasets": [{"path": "a", "weight": "1"}]}, ["datasets[0].weight must be a finite number, got '1'"]),
        ({"datasets": [{"path": "a", "tasks": {"text": -1}}]}, ["datasets[0].tasks.text must be 0 or more, got -1"]),
        ({"datasets": [{"path": "a", "tasks": {"text": 0}}]}, ["datasets[0].tasks must have a weight above 0"]),
        ({"datasets": [{"path": "a", "tasks": ["text"]}]}, ["datasets[0].tasks must map names to values"]),
        ({"datasets": [{"path": "a", "start_offset": float("nan")}]}, ["datasets[0].start_offset must be a finite"]),
        (
            {"datasets": [{"path": "a", "columns": {"start": 1}}]},
            ["columns.start must be the name of a column or none"],
        ),
        ({"datasets": [{"path": "a", "split": 1}]}, ["datasets[0].split must be text, got 1"]),
        ({"task_weights": [["text", 1]]}, ["task_weights must be a list of plain values"]),
        ({"seed": -1}, ["--seed must be in 0..2**32 - 1, got -1"]),
        ({"seed": "many"}, ["--seed", "many"]),
        ({"config": "other.yaml"}, ["unknown key 'config'"]),
        ("- 1", ["must have lines such as `seed: 1`, got list"]),
        ("a: [", ["run.yaml"]),
        ("!!python/object/apply:os.system ['touch x']", ["run.yaml", "could not determine a constructor"]),
    ],
)
def test_wrong_files(parse, values, words):
    with refused("run.yaml" if "seed" not in values else "--seed", *words):
        parse({**NEEDED, **values} if isinstance(values, dict) else values)


def test_a_missing_file(tmp_path):
    with refused("--config", "gone.yaml", "No such file"):
        parse_args(["--config", str(tmp_path / "gone.yaml")])


def test_unknown_options_have_a_hint():
    with refused("unrecognized arguments: --lerning_rate 1; did you mean --learning_rate?"):
        parse_args([*(word for key in NEEDED for word in (f"--{key}", "1")), "--lerning_rate", "1"])


def test_names_of_diffusers():
    options = ["--pretrained_model_name_or_path", "m", "--output_dir", "o", "--max_train_steps", "1"]
    args = parse_args([*options, "--train_data_dir", "data", "--proportion_empty_prompts", "0.25"])
    assert (args.dataset, args.drop_text_rate) == (["data"], 0.25)


def test_a_run_keeps_its_config(small_model, scenes, tmp_path):
    """The file in the output folder gives the same options, the card shows those that are not defaults."""
    rows = [{"audio": str(path), "words": "rain"} for path in sorted(Path(scenes).glob("*.mp4"))]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "pretrained_model_name_or_path": str(small_model),
        "datasets": [
            {"path": str(scenes), "tasks": {"video": 1}, "weight": 2},
            {"path": str(tmp_path / "data.jsonl"), "columns": {"caption": "words"}, "start_offset": 0.5},
        ],
        "output_dir": str(tmp_path / "out"),
        "max_train_steps": 2,
        "train_batch_size": 4,
        "dataloader_num_workers": 0,
        "crop": "start",
        "hub_token": "secret",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    args = parse_args(["--config", str(tmp_path / "run.yaml")])
    trainer = Trainer(args)
    records = [record for _ in range(8) for record in next(iter(trainer.records)).records]
    tasks = {record.key.source: set() for record in records}
    for record in records:
        tasks[record.key.source].add(record.task_spec.task)
    assert tasks[0] == {"video"} and tasks[1] - {"video"}
    trainer.train()
    saved = tmp_path / "out" / CONFIG
    assert as_json(parse_args(["--config", str(saved)])) == as_json(args)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "    crop: start\n" in card and "      start_offset: 0.5\n" in card and "    weight: 2.0\n" in card
    assert str(tmp_path) not in card and "secret" not in card + saved.read_text()


@pytest.mark.parametrize(
    ("command", "method"), [("train", FullTraining), ("train-lora", LoraTraining), ("distill", DistillTraining)]
)
def test_the_audiox_command(monkeypatch, capsys, command, method):
    monkeypatch.setattr("audiox_diffusers.training.main", lambda argv, *given, prog: calls.append((argv, given, prog)))
    calls = []
    assert cli.main([command, "--dataset", "a", "-b", "--help"]) == 0
    given = () if method is FullTraining else (method,)
    assert calls == [(["--dataset", "a", "-b", "--help"], given, f"audiox {command}")]


def test_help_of_the_audiox_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train-lora", "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: audiox train-lora") and "--rank" in said and "--config FILE" in said
