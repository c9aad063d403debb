"""The arguments that the training scripts share, and what may change when a run is resumed."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import is_tensorboard_available, is_wandb_available

from ..pipelines.prompts import VIDEO_PROMPT
from .data.masking import TASKS, MaskingConfig
from .data.records import COLUMNS
from .lr_schedules import LR_SCHEDULERS

MASKING_RATES = {
    "drop_text_rate": "share of captions that are dropped",
    "drop_video_rate": "share of videos and pictures that are dropped",
    "drop_audio_rate": "share of audio prompts that are dropped",
    "mask_text_rate": "share of the text tokens that are masked",
    "mask_video_rate": "share of the video patches that are masked",
    "audio_mask_min": "least share of an audio prompt that is silenced for inpainting",
    "audio_mask_max": "greatest share of an audio prompt that is silenced for inpainting",
    "drop_context_rate": "share of samples whose whole context is zeroed, for guidance",
}

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}

# Everything else decides what is computed, and an exact resume needs it as it was.
MAY_CHANGE = {
    "output_dir",
    "max_train_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "tracker_project_name",
    "logging_dir",
    "validation_prompts",
    "validation_steps",
    "validation_inference_steps",
    "validation_guidance_scale",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "max_bad_records",
    "cache_dir",
    "gradient_checkpointing",
    "enable_tiling",
    "vae_config",  # what is in it is compared, as the config of the network
}

# Folders that are in the output folder by default, and are moved with it.
FOLDERS = ("cache_latents", "class_data_dir")


def build_parser(tuning: type) -> argparse.ArgumentParser:
    """The arguments that all scripts share, and those of a way of training, such as [`FullTuning`]."""
    parser = argparse.ArgumentParser(description=tuning.description, allow_abbrev=False)
    _add_model(parser.add_argument_group("model"))
    _add_data(parser.add_argument_group("data"))
    _add_tasks(parser.add_argument_group("tasks and masking"))
    _add_objective(parser.add_argument_group("objective"))
    _add_loop(parser.add_argument_group("loop"))
    _add_optimizer(parser.add_argument_group("optimizer"))
    _add_checkpoints(parser.add_argument_group("checkpoints"))
    _add_reports(parser.add_argument_group("reports"))
    tuning.add_arguments(parser)
    return parser


def _add_model(group) -> None:
    group.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help="a pipeline, from the Hub or a folder: what is trained starts from it, what is frozen comes from it",
    )
    group.add_argument("--revision", help="of the pipeline on the Hub")
    group.add_argument("--variant", help="of the pipeline's files, such as fp16")


def _add_data(group) -> None:
    group.add_argument(
        "--dataset",
        nargs="+",
        required=True,
        help="what `datasets.load_dataset` streams: Hub ids, folders of media with metadata.jsonl or .csv, files or globs"
        " of Parquet or WebDataset tars; several are mixed",
    )
    group.add_argument("--dataset_weights", nargs="+", type=float, help="how much of each; by default all the same")
    group.add_argument("--dataset_config_name", help="configuration of the datasets")
    group.add_argument("--dataset_split", default="train", help="split of the datasets")
    group.add_argument("--dataset_revision", help="revision of the datasets on the Hub")
    group.add_argument("--cache_dir", help="where `datasets` and `huggingface_hub` keep what they download")
    for name in COLUMNS:
        group.add_argument(
            f"--{name}_column", help=f"name of the column {name}; by default {name}, where there is one"
        )
    group.add_argument(
        "--crop", choices=("random", "start"), default="random", help="where in a longer record the window is"
    )
    group.add_argument("--min_seconds", type=float, default=1.0, help="shorter records are passed over")
    group.add_argument(
        "--shuffle_buffer_size", type=int, default=1000, help="rows that are shuffled at a time; 1 keeps their order"
    )
    group.add_argument(
        "--max_bad_records", type=int, default=100, help="so many records in a row that cannot be used end the run"
    )
    group.add_argument("--dataloader_num_workers", type=int, default=2, help="processes that decode, for each device")
    group.add_argument(
        "--cache_latents",
        type=Path,
        metavar="DIR",
        help="encode the data once into this folder, and train from there; an existing cache is used",
    )


def _add_tasks(group) -> None:
    defaults = MaskingConfig()
    group.add_argument(
        "--task_weights",
        nargs="+",
        metavar="TASK=WEIGHT",
        default=[],
        help=f"how often each task is drawn where a record allows it: {', '.join(TASKS)}; 1 unless given",
    )
    for name, what in MASKING_RATES.items():
        default = getattr(defaults, name)
        group.add_argument(f"--{name}", type=float, default=default, help=f"{what}; {default:g} by default")
    group.add_argument("--video_prompt", default=VIDEO_PROMPT, help="text of a picture that has none")


def _add_objective(group) -> None:
    group.add_argument(
        "--weighting_scheme",
        choices=("uniform", "logit_normal"),
        default="uniform",
        help="distribution of the times, drawn from a Sobol sequence",
    )
    group.add_argument("--logit_mean", type=float, default=0.0, help="of logit_normal")
    group.add_argument("--logit_std", type=float, default=1.0, help="of logit_normal")
    group.add_argument("--snr_gamma", type=float, help="weigh the loss by min-SNR (arXiv 2303.09556) with this gamma")


def _add_loop(group) -> None:
    group.add_argument("--output_dir", type=Path, required=True, help="where the checkpoints and the model go")
    group.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    group.add_argument("--train_batch_size", type=int, default=4, help="samples of a device in a forward pass")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--max_train_steps", type=int, required=True, help="optimizer steps, those before a resume too")
    group.add_argument("--gradient_checkpointing", action="store_true", help="save memory, take a third more time")
    group.add_argument("--enable_tiling", action="store_true", help="encode sound in tiles, with less memory")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="by default as accelerate is set up")
    group.add_argument("--allow_tf32", action="store_true", help="faster matrix products on Ampere and later")


def _add_optimizer(group) -> None:
    group.add_argument("--learning_rate", type=float, default=1e-5)
    group.add_argument("--scale_lr", action="store_true", help="multiply it by batch, accumulation and processes")
    group.add_argument(
        "--lr_scheduler",
        choices=LR_SCHEDULERS,
        default="constant",
        help="inverse_sqrt is the paper's, the others are those of diffusers",
    )
    group.add_argument("--lr_warmup_steps", type=int, default=0)
    group.add_argument("--lr_num_cycles", type=int, default=1, help="of cosine_with_restarts")
    group.add_argument("--lr_power", type=float, default=1.0, help="of polynomial")
    group.add_argument("--lr_inv_gamma", type=float, default=1e6, help="of inverse_sqrt")
    group.add_argument("--lr_warmup_decay", type=float, default=0.99, help="of inverse_sqrt")
    group.add_argument("--use_8bit_adam", action="store_true", help="with bitsandbytes")
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--adam_weight_decay", type=float, default=1e-3)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--use_ema", action="store_true", help="keep a moving average of the weights, and save that")
    group.add_argument("--ema_decay", type=float, default=0.9999)


def _add_checkpoints(group) -> None:
    group.add_argument("--checkpointing_steps", type=int, default=500)
    group.add_argument("--checkpoints_total_limit", type=int, help="keep so many, the newest")
    group.add_argument("--resume_from_checkpoint", help="latest, or the name of a checkpoint in the output folder")


def _add_reports(group) -> None:
    group.add_argument(
        "--report_to", choices=("none", *TRACKERS), default="none", help="where the losses and the sounds go"
    )
    group.add_argument("--logging_dir", default="logs", help="folder of TensorBoard, in the output folder")
    group.add_argument("--tracker_project_name", default="audiox")
    group.add_argument(
        "--validation_prompts",
        type=Path,
        help="JSON lines with prompt, video, image, audio, negative_prompt, length and seed, paths relative to the file",
    )
    group.add_argument("--validation_steps", type=int, default=500)
    group.add_argument("--validation_inference_steps", type=int, help="by default those of the pipeline")
    group.add_argument("--validation_guidance_scale", type=float, help="by default that of the pipeline")
    group.add_argument("--push_to_hub", action="store_true")
    group.add_argument("--hub_model_id", help="by default the name of the output folder")
    group.add_argument("--hub_token")


def parse_args(argv: Sequence[str] | None, tuning: type) -> argparse.Namespace:
    """Parse and check; what is wrong is reported as argparse does, naming the argument."""
    parser = build_parser(tuning)
    args = parser.parse_args(argv)
    try:
        check(args)
        tuning.check_arguments(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check(args: argparse.Namespace) -> None:
    """Raise `ValueError` naming the argument that is out of range or does not go with another."""
    _check_numbers(args)
    weights = args.dataset_weights
    if weights is not None and (len(weights) != len(args.dataset) or not all(0 < w < math.inf for w in weights)):
        raise ValueError(f"--dataset_weights needs a finite weight above 0 for each --dataset, got {weights}")
    for name in ("output_dir", "cache_latents"):
        check_folder(args, name)
    if args.report_to in TRACKERS and not TRACKERS[args.report_to]():
        raise ValueError(f"--report_to {args.report_to} needs {args.report_to}: pip install {args.report_to}")
    masking_config(args)


def _check_numbers(args: argparse.Namespace) -> None:
    for name in (
        "train_batch_size",
        "gradient_accumulation_steps",
        "max_train_steps",
        "lr_num_cycles",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "validation_steps",
        "validation_inference_steps",
        "shuffle_buffer_size",
        "max_bad_records",
    ):
        check_at_least(args, name, 1)
    for name in ("dataloader_num_workers", "lr_warmup_steps"):
        check_at_least(args, name, 0)
    check_seed(args)
    for name in (
        "learning_rate",
        "adam_epsilon",
        "max_grad_norm",
        "min_seconds",
        "logit_std",
        "lr_power",
        "lr_inv_gamma",
        "snr_gamma",
    ):
        check_above_0(args, name)
    check_not_negative(args, "adam_weight_decay")
    for name in ("logit_mean", "validation_guidance_scale"):
        value = getattr(args, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name} must be a finite number, got {value:g}")
    for name in ("ema_decay", "adam_beta1", "adam_beta2", "lr_warmup_decay"):
        check_share(args, name)


def check_at_least(args: argparse.Namespace, name: str, least: int) -> None:
    """`ValueError` if an argument is given and smaller."""
    value = getattr(args, name)
    if value is not None and value < least:
        raise ValueError(f"--{name} must be at least {least}, got {value}")


def check_above_0(args: argparse.Namespace, name: str) -> None:
    """`ValueError` if an argument is given and not a finite number above 0."""
    value = getattr(args, name)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"--{name} must be a finite number above 0, got {value:g}")


def check_not_negative(args: argparse.Namespace, name: str) -> None:
    """`ValueError` if an argument is not a finite number, 0 or more."""
    if not 0 <= getattr(args, name) < math.inf:
        raise ValueError(f"--{name} must be a finite number, 0 or more, got {getattr(args, name):g}")


def check_share(args: argparse.Namespace, name: str) -> None:
    """`ValueError` if an argument is not in 0..1, or 1."""
    if not 0 <= getattr(args, name) < 1:
        raise ValueError(f"--{name} must be in 0..1, below 1, got {getattr(args, name):g}")


def check_seed(args: argparse.Namespace) -> None:
    """`ValueError` if the seed is none that NumPy takes."""
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must be in 0..2**32 - 1, got {args.seed}")


def check_folder(args: argparse.Namespace, name: str) -> None:
    """`ValueError` if an argument is given and a file."""
    folder = getattr(args, name)
    if folder is not None and folder.is_file():
        raise ValueError(f"--{name} {folder} is a file")


def masking_config(args: argparse.Namespace) -> MaskingConfig:
    """The tasks and rates; `ValueError` names what is out of range."""
    weights = {}
    for item in args.task_weights:
        task, _, weight = item.partition("=")
        try:
            weights[task] = float(weight)
        except ValueError:
            raise ValueError(f"--task_weights takes TASK=WEIGHT, got {item!r}") from None
    rates = {name: getattr(args, name) for name in MASKING_RATES}
    return MaskingConfig(task_weights={**MaskingConfig().task_weights, **weights}, **rates)


def as_json(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments as JSON holds them, without what is secret."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    values.pop("hub_token", None)
    return values


def check_resumed(args: dict, saved: dict) -> None:
    """
    Raise `ValueError` naming the arguments that differ from those of the checkpoint and may not.

    Args:
        args, saved: arguments as JSON holds them.
    """
    changed = [
        f"--{name} was {saved.get(name)!r} and is {value!r}"
        for name, value in args.items()
        if name not in MAY_CHANGE and _kept(saved, name) != _kept(args, name)
    ]
    if changed:
        raise ValueError(f"--resume_from_checkpoint needs the arguments that the run began with: {'; '.join(changed)}")


def _kept(args: dict, name: str) -> Any:
    value = args.get(name)
    return place(value, args["output_dir"]) if name in FOLDERS and value is not None else value


def place(folder: str, output_dir: str) -> str:
    """Where a folder is: inside of the output folder, which may be moved, its place there."""
    inside = Path(folder).is_relative_to(output_dir)
    return f"<output_dir>/{Path(folder).relative_to(output_dir)}" if inside else folder
