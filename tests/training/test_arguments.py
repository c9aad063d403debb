import re
from dataclasses import fields
from pathlib import Path

import pytest

from audiox_diffusers.training import arguments, main, parse_args
from audiox_diffusers.training.arguments import (
    TASKS,
    MaskingConfig,
    MaskingRates,
    TrainingArguments,
    build_parser,
)
from audiox_diffusers.training.methods.full import FullArguments

NEEDED = ["--pretrained_model_name_or_path", "model", "--dataset", "data", "--output_dir", "out"]
NEEDED += ["--max_train_steps", "10"]
MASKING_RATES = [rate.name for rate in fields(MaskingRates)]


def parse(*options: object) -> TrainingArguments:
    return parse_args([*NEEDED, *map(str, options)])


def refused(capsys, *options: object) -> str:
    """Return the error for bad options."""
    with pytest.raises(SystemExit) as error:
        parse(*options)
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_defaults():
    args = parse()
    assert (args.learning_rate, args.adam_weight_decay, args.ema_decay) == (1e-5, 1e-3, 0.9999)
    assert (args.lr_scheduler, args.weighting_scheme, args.crop, args.report_to) == (
        "constant",
        "uniform",
        "random",
        ["none"],
    )
    assert args.video_prompt == "Generate general audio for the video"
    assert args.dataset == ["data"] and args.dataset_weights is None
    assert args.output_dir == Path("out")
    assert args.masking() == MaskingConfig()


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_args(["--help"])
    said = capsys.readouterr().out
    for action in build_parser(FullArguments, "")._actions:
        assert action.option_strings[-1] in said


@pytest.mark.parametrize("missing", range(0, len(NEEDED), 2))
def test_required_options(capsys, missing):
    with pytest.raises(SystemExit):
        parse_args([*NEEDED[:missing], *NEEDED[missing + 2 :]])
    assert NEEDED[missing] in capsys.readouterr().err.splitlines()[-1]


NAN_OR_INFINITE = ["nan", "inf", "-inf"]
BAD_VALUES = {
    "train_batch_size": [0, -1, 1.5],
    "gradient_accumulation_steps": [0, -1],
    "max_train_steps": [0, -1, "nan"],
    "num_train_epochs": [0, -1, "nan"],
    "checkpointing_steps": [0, -1],
    "checkpoints_total_limit": [0, -1],
    "validation_steps": [0, -1],
    "early_stopping_patience": [0, -1],
    "validation_inference_steps": [0, -1],
    "shuffle_buffer_size": [0, -1],
    "max_bad_records": [0, -1],
    "lr_num_cycles": [0, -1],
    "dataloader_num_workers": [-1],
    "lr_warmup_steps": [-1],
    "seed": [-1, 2**32],
    "learning_rate": [0, -1, *NAN_OR_INFINITE],
    "adam_epsilon": [0, -1, *NAN_OR_INFINITE],
    "adam_weight_decay": [-1, *NAN_OR_INFINITE],
    "adam_beta1": [-0.1, 1, *NAN_OR_INFINITE],
    "adam_beta2": [-0.1, 1, *NAN_OR_INFINITE],
    "max_grad_norm": [0, -1, *NAN_OR_INFINITE],
    "min_seconds": [0, -1, *NAN_OR_INFINITE],
    "logit_mean": NAN_OR_INFINITE,
    "logit_std": [0, -1, *NAN_OR_INFINITE],
    "snr_gamma": [0, -1, *NAN_OR_INFINITE],
    "lr_power": [0, -1, *NAN_OR_INFINITE],
    "lr_inv_gamma": [0, -1, *NAN_OR_INFINITE],
    "lr_warmup_decay": [-0.1, 1, *NAN_OR_INFINITE],
    "gradient_checkpointing_interval": [0, -1],
    "ema_decay": [-0.1, 1, *NAN_OR_INFINITE],
    "validation_guidance_scale": NAN_OR_INFINITE,
    "dataset_weights": [0, -1, *NAN_OR_INFINITE],
    **{name: [-0.1, 1.1, *NAN_OR_INFINITE] for name in MASKING_RATES},
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_numbers_out_of_range(capsys, name):
    for value in BAD_VALUES[name]:
        said = refused(capsys, f"--{name}={value}")
        assert name in said and (str(value) in said or f"{value:g}" in said)


def test_every_number_is_checked():
    numbers = {action.dest for action in build_parser(FullArguments, "")._actions if action.type in (int, float)}
    assert numbers == set(BAD_VALUES)


@pytest.mark.parametrize("name", ["crop", "weighting_scheme", "mixed_precision", "lr_scheduler", "report_to"])
def test_unknown_choices(capsys, name):
    said = refused(capsys, f"--{name}", "other")
    assert f"--{name}" in said and "invalid choice: 'other'" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--learning", 1], "--learning"),
        (
            ["--dataset", "a", "b", "--dataset_weights", 1],
            r"--dataset_weights must have one weight for each --dataset, got 1 weights for 2 datasets",
        ),
        (["--dataset_weights", 1, 2], "--dataset_weights"),
        (["--task_weights", "text"], "--task_weights takes TASK=WEIGHT, got 'text'"),
        (["--task_weights", "text=many"], "--task_weights takes TASK=WEIGHT, got 'text=many'"),
        (["--task_weights", "music=1"], "task_weights takes text, video, .*got 'music'"),
        (["--task_weights", "text=nan"], "task_weights must be finite and at least 0, got nan for 'text'"),
        (["--task_weights", "text=-1"], "task_weights must be finite and at least 0, got -1.0 for 'text'"),
        (["--task_weights", *(f"{task}=0" for task in TASKS)], "task_weights must have a weight above 0"),
        (["--audio_mask_min", 0.8], "--audio_mask_min must be at most --audio_mask_max, got 0.8 and 0.75"),
        (["--cache_latents", "cache", "--train_text_encoder"], "--cache_latents .* leave out --train_text_encoder"),
        (["--train_vae"], "--train_vae is no longer available: .* train a VAE with training/train_vae.py"),
        (["--output_dir", __file__], "--output_dir must be a folder, not a file, got .*test_arguments.py"),
        (["--cache_latents", __file__], "--cache_latents must be a folder, not a file, got .*test_arguments.py"),
    ],
)
def test_conflicting_options(capsys, options, said):
    assert re.search(said, refused(capsys, *options))


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_tracker_that_is_not_installed(capsys, monkeypatch, tracker):
    monkeypatch.setitem(arguments.TRACKERS, tracker, lambda: False)
    assert f"--report_to {tracker} needs {tracker}: pip install {tracker}" in refused(capsys, "--report_to", tracker)
    monkeypatch.setitem(arguments.TRACKERS, tracker, lambda: True)
    assert parse("--report_to", tracker).report_to == [tracker]


def test_masking_rates_and_task_weights():
    rates = {name: (index + 1) / 100 for index, name in enumerate(MASKING_RATES)}
    options = [word for name, rate in rates.items() for word in (f"--{name}", rate)]
    config = parse(*options, "--task_weights", "text=0", "completion=2.5").masking()
    assert rates == {name: getattr(config, name) for name in rates}
    assert config.task_weights == {**dict.fromkeys(TASKS, 1.0), "text": 0.0, "completion": 2.5}
    assert {name for name in vars(config) if name != "task_weights"} == set(rates)


def test_ends_of_the_ranges():
    options = ["--adam_weight_decay", 0, "--adam_beta1", 0, "--ema_decay", 0, "--seed", 2**32 - 1]
    options += ["--logit_mean", -2, "--validation_guidance_scale", 0, "--dataloader_num_workers", 0]
    args = parse(*options, "--audio_mask_min", 0, "--audio_mask_max", 1)
    assert (args.logit_mean, args.validation_guidance_scale, args.seed) == (-2, 0, 2**32 - 1)


def test_main_prints_errors_on_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*pretrained_model_name_or_path.*nowhere"):
        main([*NEEDED, "--pretrained_model_name_or_path", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path)])
