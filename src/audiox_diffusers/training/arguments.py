"""Options of the training scripts, as dataclasses that `transformers.HfArgumentParser` reads."""

import math
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

from accelerate.utils import is_tensorboard_available, is_wandb_available
from transformers.hf_argparser import HfArg, HfArgumentParser

from ..evaluation.metrics import METRICS
from ..pipelines.prompts import VIDEO_PROMPT
from .config_file import ConfigFile, nearest, read_config
from .dataset_list import DatasetOptions
from .lr_schedules import LR_SCHEDULERS
from .optimizers import check_optimizer


class Range(NamedTuple):
    """Allowed values of an option, as text and as a check."""

    allowed: str
    contains: Callable[[Any], bool]


Count = Annotated[int, Range("at least 1", lambda value: value >= 1)]
CountOrZero = Annotated[int, Range("at least 0", lambda value: value >= 0)]
Seed = Annotated[int, Range("in 0..2**32 - 1", lambda value: 0 <= value < 2**32)]
Finite = Annotated[float, Range("a finite number", math.isfinite)]
Positive = Annotated[float, Range("a finite number above 0", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Range("a finite number, 0 or more", lambda value: 0 <= value < math.inf)]
Decay = Annotated[float, Range("in 0..1, below 1", lambda value: 0 <= value < 1)]
Rate = Annotated[float, Range("in 0..1", lambda value: 0 <= value <= 1)]
Folder = Annotated[Path, Range("a folder, not a file", lambda value: not value.is_file())]

TASKS = ("text", "video", "text_video", "image", "inpainting", "completion")
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


@dataclass(kw_only=True)
class Arguments:
    """
    Base of all options. Checks the ranges that the annotations declare.

    Raises:
        ValueError: An option is out of range. The message names the option, the value and the range.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for allowed, contains in _ranges(hint):
                for item in value if isinstance(value, list) else [value]:
                    if item is not None and not contains(item):
                        raise ValueError(f"--{name} must be {allowed}, got {item}")


def _ranges(hint: Any) -> Iterator[Range]:
    """Find the ranges anywhere in a type such as `list[Positive] | None`."""
    yield from (item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Range))
    for part in get_args(hint):
        yield from _ranges(part)


@dataclass(kw_only=True)
class ModelArguments(Arguments):
    _argument_group_name = "model"

    pretrained_model_name_or_path: str = HfArg(
        help="Pipeline to start from: a folder, a Hub id, or the name of a release such as audiox. Frozen components come"
        " from it too."
    )
    revision: str | None = HfArg(default=None, help="Revision of the pipeline on the Hub.")
    variant: str | None = HfArg(default=None, help="Variant of the pipeline's weight files, such as fp16.")
    gradient_checkpointing: bool = HfArg(default=False, help="Use less memory and about a third more time.")
    gradient_checkpointing_interval: Count = HfArg(
        default=1, help="Checkpoint only every n-th block, which takes more memory and less time."
    )
    activation_offloading: bool = HfArg(
        default=False, help="Move activations to the CPU until the backward pass needs them."
    )
    enable_tiling: bool = HfArg(default=False, help="Encode audio in tiles, which uses less memory.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_checkpointing_interval > 1 and not self.gradient_checkpointing:
            raise ValueError("--gradient_checkpointing_interval has no effect without --gradient_checkpointing")


@dataclass(kw_only=True)
class DataArguments(Arguments):
    _argument_group_name = "data"

    dataset: list[str] = HfArg(
        aliases=["--dataset_name", "--train_data_dir", "--instance_data_dir"],
        help="Hub ids, folders of media, and files or globs of Parquet, WebDataset tars, JSON lines or CSV. Several"
        " datasets are mixed. See docs/training.md for all formats.",
    )
    dataset_weights: list[Positive] | None = HfArg(
        default=None, help="Weight of each dataset in the mixture. Equal weights if omitted."
    )
    media_dir: Folder | None = HfArg(
        default=None,
        help="Folder of the files that CSV and JSON lines name by path or by id. Defaults to the folder of the table.",
        metadata={"metavar": "DIR"},
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the datasets.")
    dataset_split: str = HfArg(default="train", help="Split of the datasets.")
    dataset_revision: str | None = HfArg(default=None, help="Revision of the datasets on the Hub.")
    cache_dir: str | None = HfArg(default=None, help="Download cache of `datasets` and `huggingface_hub`.")
    audio_column: str | None = HfArg(
        default=None, help="Column with the audio, or none. Defaults to audio, or a column of sound files."
    )
    video_column: str | None = HfArg(
        default=None, help="Column with the video, or none. Defaults to video, or a column of video files."
    )
    image_column: str | None = HfArg(
        default=None, help="Column with the image, or none. Defaults to image, or a column of image files."
    )
    caption_column: str | None = HfArg(
        default=None,
        help="Column with the caption, folder for the names of class folders, or none. Defaults to caption, text,"
        " captions, sentence or label.",
    )
    audio_prompt_column: str | None = HfArg(
        default=None, help="Column with the audio prompt. Defaults to audio_prompt, if present."
    )
    task_column: str | None = HfArg(default=None, help="Column with the task. Defaults to task, if present.")
    start_column: str | None = HfArg(
        default=None, help="Column with the first second to use. Defaults to start, if present."
    )
    end_column: str | None = HfArg(
        default=None, help="Column with the last second to use. Defaults to end, if present."
    )
    crop: Literal["random", "start"] = HfArg(default="random", help="Position of the window in a longer record.")
    min_seconds: Positive = HfArg(default=1.0, help="Skip records shorter than this.")
    keep_silence: bool = HfArg(
        default=False,
        help="Train on silent windows too. Otherwise another window of the record is drawn, and a record whose windows"
        " are all silent is skipped.",
    )
    shuffle_buffer_size: Count = HfArg(
        default=1000,
        help="Rows to shuffle at a time, or fewer if they hold more than 256 MB of media in each worker. 1 keeps their"
        " order.",
    )
    max_bad_records: Count = HfArg(default=100, help="Stop after this many unusable records in a row.")
    dataloader_num_workers: CountOrZero = HfArg(default=2, help="Decoding processes for each device.")
    cache_latents: Folder | None = HfArg(
        default=None,
        help="Encode whole records once into this folder, and train from there. Continues or reuses an existing cache.",
        metadata={"metavar": "DIR"},
    )

    # Set by a config file that lists datasets with options of their own.
    dataset_options: list[dict[str, Any]] | None = field(default=None, init=False)

    def datasets(self) -> list[DatasetOptions]:
        """Return the datasets, each with its own options or else those of the run."""
        weights = self.dataset_weights or [1.0] * len(self.dataset)
        given = {name: getattr(self, f"{name}_column") for name in COLUMNS}
        common = {
            "config_name": self.dataset_config_name,
            "split": self.dataset_split,
            "revision": self.dataset_revision,
            "media_dir": None if self.media_dir is None else str(self.media_dir),
        }
        columns = {name: column for name, column in given.items() if column is not None}
        datasets = []
        for number, (path, weight) in enumerate(zip(self.dataset, weights, strict=True)):
            own = dict(self.dataset_options[number]) if self.dataset_options else {}
            own["columns"] = {**columns, **own.get("columns", {})}
            datasets.append(DatasetOptions(path=path, **{"weight": weight, **common, **own}))
        return datasets

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset_weights is not None and len(self.dataset_weights) != len(self.dataset):
            raise ValueError(
                f"--dataset_weights must have one weight for each --dataset, got {len(self.dataset_weights)} weights"
                f" for {len(self.dataset)} datasets"
            )


# What a row of a dataset can hold.
COLUMNS = tuple(
    field.name.removesuffix("_column") for field in fields(DataArguments) if field.name.endswith("_column")
)


@dataclass(kw_only=True)
class MaskingRates(Arguments):
    """
    Rates of multi-modal masked training (arXiv 2503.10522). The paper does not publish its rates, except
    `drop_context_rate`. The range of the silenced span is that of AudioX-Turbo (arXiv 2606.12555).
    """

    drop_text_rate: Rate = HfArg(
        default=0.1, aliases=["--proportion_empty_prompts"], help="Share of samples trained without their caption."
    )
    drop_video_rate: Rate = HfArg(default=0.1, help="Share of samples trained without their video or image.")
    drop_audio_rate: Rate = HfArg(default=0.1, help="Share of samples trained without their audio prompt.")
    mask_text_rate: Rate = HfArg(default=0.1, help="Share of text tokens to mask.")
    mask_video_rate: Rate = HfArg(default=0.1, help="Share of video patches to mask.")
    audio_mask_min: Rate = HfArg(default=0.25, help="Smallest share of an audio prompt to silence for inpainting.")
    audio_mask_max: Rate = HfArg(default=0.75, help="Largest share of an audio prompt to silence for inpainting.")
    drop_context_rate: Rate = HfArg(default=0.1, help="Share of samples with zeroed context, for guidance.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.audio_mask_min > self.audio_mask_max:
            raise ValueError(
                f"--audio_mask_min must be at most --audio_mask_max, got {self.audio_mask_min} and"
                f" {self.audio_mask_max}"
            )


@dataclass(kw_only=True)
class MaskingConfig(MaskingRates):
    """
    Weights of the tasks, and rates of masking.

    Args:
        task_weights (`dict[str, float]`): How often to draw each of `TASKS`, relative to the others that a sample
            allows. A task that is missing is never drawn.

    Raises:
        ValueError: A field is out of range. The message names it.
    """

    task_weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        for task, weight in self.task_weights.items():
            if task not in TASKS:
                raise ValueError(f"--task_weights takes {', '.join(TASKS)}, got {task!r}")
            if not 0 <= weight < math.inf:
                raise ValueError(f"--task_weights must be finite and at least 0, got {weight} for {task!r}")
        if not sum(self.task_weights.values()) > 0:
            raise ValueError(f"--task_weights must have a weight above 0, got {self.task_weights}")


@dataclass(kw_only=True)
class TaskArguments(MaskingRates):
    _argument_group_name = "tasks and masking"

    task_weights: list[str] = HfArg(
        default_factory=list,
        help=f"How often to draw each of the tasks that a record allows: {', '.join(TASKS)}. The default weight is 1.",
        metadata={"metavar": "TASK=WEIGHT"},
    )
    video_prompt: str = HfArg(default=VIDEO_PROMPT, help="Text for videos and images without a caption.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masking()

    def masking(self) -> MaskingConfig:
        """
        Parse the task weights.

        Raises:
            ValueError: A weight is malformed or out of range.
        """
        weights = dict.fromkeys(TASKS, 1.0)
        for item in self.task_weights:
            task, _, weight = item.partition("=")
            try:
                weights[task] = float(weight)
            except ValueError:
                raise ValueError(f"--task_weights takes TASK=WEIGHT, got {item!r}") from None
        return MaskingConfig(
            task_weights=weights, **{rate.name: getattr(self, rate.name) for rate in fields(MaskingRates)}
        )


@dataclass(kw_only=True)
class ObjectiveArguments(Arguments):
    _argument_group_name = "objective"

    weighting_scheme: Literal["uniform", "logit_normal"] = HfArg(
        default="uniform", help="Distribution of the timesteps, drawn from a Sobol sequence."
    )
    logit_mean: Finite = HfArg(default=0.0, help="Mean of logit_normal.")
    logit_std: Positive = HfArg(default=1.0, help="Standard deviation of logit_normal.")
    snr_gamma: Positive | None = HfArg(default=None, help="Gamma of min-SNR loss weighting (arXiv 2303.09556).")


@dataclass(kw_only=True)
class RunArguments(Arguments):
    """Options of every training run, the VAE's included."""

    _argument_group_name = "run"

    output_dir: Folder = HfArg(help="Folder for the checkpoints, the log and the trained model.")
    seed: Seed = HfArg(default=0, help="Seed of everything that is drawn.")
    train_batch_size: Count = HfArg(default=4, help="Samples per device in a forward pass.")
    learning_rate: Positive = HfArg(default=1e-5, help="Peak learning rate.")
    lr_warmup_steps: CountOrZero = HfArg(default=0, help="Steps of linear warm-up.")
    max_grad_norm: Positive = HfArg(default=1.0, help="Clip gradients to this norm.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = HfArg(
        default=None, help="Precision of the forward pass. Defaults to accelerate's configuration."
    )
    checkpointing_steps: Count = HfArg(default=500, help="Steps between checkpoints.")
    checkpoints_total_limit: Count | None = HfArg(default=None, help="Number of checkpoints to keep, the newest.")
    resume_from_checkpoint: str | None = HfArg(
        default=None, help="latest, or the name of a checkpoint in the output folder."
    )


@dataclass(kw_only=True)
class LengthArguments(Arguments):
    _argument_group_name = "length of the run"

    max_train_steps: Count | None = HfArg(default=None, help="Optimizer steps, including those before a resume.")
    num_train_epochs: Count | None = HfArg(
        default=None,
        help="Passes over the data, instead of --max_train_steps. The number of records must be known, and skipped ones"
        " count too.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_train_steps is None and self.num_train_epochs is None:
            raise ValueError("--max_train_steps or --num_train_epochs is required")
        if self.max_train_steps is not None and self.num_train_epochs is not None:
            raise ValueError("--num_train_epochs cannot be combined with --max_train_steps")


@dataclass(kw_only=True)
class OptimizerArguments(Arguments):
    _argument_group_name = "optimizer"

    gradient_accumulation_steps: Count = HfArg(default=1, help="Forward passes for each optimizer step.")
    scale_lr: bool = HfArg(
        default=False, help="Multiply the learning rate by batch size, accumulation steps and processes."
    )
    lr_scheduler: str = HfArg(
        default="constant",
        help="Learning rate schedule. inverse_sqrt is the paper's, the others are diffusers'.",
        metadata={"choices": LR_SCHEDULERS},
    )
    lr_num_cycles: Count = HfArg(default=1, help="Cycles of cosine_with_restarts.")
    lr_power: Positive = HfArg(default=1.0, help="Power of polynomial.")
    lr_inv_gamma: Positive = HfArg(default=1e6, help="Steps after which inverse_sqrt has fallen to 1 / sqrt(2).")
    lr_warmup_decay: Decay = HfArg(default=0.99, help="Warm-up of inverse_sqrt. Larger is slower, 0 is none.")
    optimizer: str = HfArg(
        default="adamw",
        help="adamw, adamw8bit (bitsandbytes), prodigy (finds the learning rate; use --learning_rate 1), schedulefree"
        " (needs no schedule), muon (for matrices, with AdamW for the rest), or a class of torch.optim such as Adafactor."
        ' Some need pip install "audiox-diffusers[optimizers]".',
        metadata={"metavar": "NAME"},
    )
    use_8bit_adam: bool = HfArg(default=False, help="The same as --optimizer adamw8bit.")
    adam_beta1: Decay = HfArg(default=0.9, help="First beta of AdamW, and of other optimizers that have it.")
    adam_beta2: Decay = HfArg(default=0.999, help="Second beta of AdamW, and of others.")
    adam_weight_decay: NotNegative = HfArg(default=1e-3, help="Weight decay of AdamW, and of others.")
    adam_epsilon: Positive = HfArg(default=1e-8, help="Epsilon of AdamW, and of others.")
    use_ema: bool = HfArg(default=False, help="Keep a moving average of the weights, and save the average.")
    ema_decay: Decay = HfArg(default=0.9999, help="Decay of the moving average.")
    ema_device: Literal["accelerator", "cpu"] = HfArg(
        default="accelerator", help="Device of the moving averages. cpu saves memory on the GPU and takes more time."
    )
    post_hoc_ema: bool = HfArg(
        default=False,
        help="Store two averages of the weights with each checkpoint, from which audiox reconstruct-ema computes averages"
        " of other lengths after training.",
    )
    # Set by `audiox reconstruct-ema`.
    ema_sigma_rel: float | None = field(default=None, init=False)

    allow_tf32: bool = HfArg(default=False, help="Allow TF32 matrix products, which are faster on Ampere and later.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_8bit_adam:
            if self.optimizer not in ("adamw", "adamw8bit"):
                raise ValueError(f"--use_8bit_adam cannot be combined with --optimizer {self.optimizer}")
            self.optimizer = "adamw8bit"
        check_optimizer(self.optimizer)
        if self.optimizer == "schedulefree":
            if self.lr_scheduler != "constant":
                raise ValueError(
                    f"--optimizer schedulefree needs no schedule; leave out --lr_scheduler {self.lr_scheduler}"
                )
            for name in ("use_ema", "post_hoc_ema"):
                if getattr(self, name):
                    raise ValueError(f"--optimizer schedulefree averages the weights itself; leave out --{name}")
        if self.ema_device != "accelerator" and not self.use_ema and not self.post_hoc_ema:
            raise ValueError(f"--ema_device {self.ema_device} has no effect without --use_ema or --post_hoc_ema")


@dataclass(kw_only=True)
class ReportArguments(Arguments):
    _argument_group_name = "reports"

    report_to: list[str] = HfArg(
        default_factory=lambda: ["none"],
        help="Trackers for the losses and the validation audio.",
        metadata={"choices": ("none", *TRACKERS)},
    )
    logging_dir: str = HfArg(default="logs", help="TensorBoard folder inside the output folder.")
    tracker_project_name: str = HfArg(default="audiox", help="Project name for the tracker.")
    validation_prompts: Path | None = HfArg(
        default=None,
        help="JSON lines with prompt, video, image, audio, negative_prompt, length and seed. Paths are relative to the"
        " file.",
    )
    validation_steps: Count = HfArg(default=500, help="Steps between validations.")
    validation_inference_steps: Count | None = HfArg(
        default=None, help="Inference steps for validation. Defaults to the pipeline's."
    )
    validation_guidance_scale: Finite | None = HfArg(
        default=None, help="Guidance scale for validation. Defaults to the pipeline's."
    )
    validation_metrics: list[str] | None = HfArg(
        default=None,
        help=f"Metrics of the validation audio, as in audiox evaluate: {', '.join(METRICS)}.",
        metadata={"metavar": "METRIC"},
    )
    validation_reference: Path | None = HfArg(
        default=None, help="Folder of real sounds, for metrics that compare sets.", metadata={"metavar": "DIR"}
    )
    push_to_hub: bool = HfArg(default=False, help="Upload the trained model to the Hub.")
    hub_model_id: str | None = HfArg(default=None, help="Repository on the Hub. Defaults to the output folder's name.")
    hub_token: str | None = HfArg(default=None, help="Token for the Hub.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_metrics is not None:
            self.validation_metrics = [name for item in self.validation_metrics for name in item.split(",") if name]
            if self.validation_prompts is None:
                raise ValueError("--validation_metrics needs --validation_prompts, whose audio it measures")
        if self.validation_reference is not None and self.validation_metrics is None:
            raise ValueError("--validation_reference has no effect without --validation_metrics")
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ValueError(f"--report_to none cannot be combined with trackers, got {' '.join(self.report_to)}")
        for name in self.trackers:
            if not TRACKERS[name]():
                raise ValueError(f"--report_to {name} needs {name}: pip install {name}")
        if "wandb" in self.trackers and self.validation_prompts is not None and find_spec("soundfile") is None:
            raise ValueError("--report_to wandb needs soundfile for validation audio: pip install soundfile")

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers, each once."""
        return [name for name in dict.fromkeys(self.report_to) if name != "none"]


@dataclass(kw_only=True)
class TrainingArguments(
    ModelArguments,
    DataArguments,
    TaskArguments,
    ObjectiveArguments,
    RunArguments,
    LengthArguments,
    OptimizerArguments,
    ReportArguments,
):
    """Options of all training methods of the transformer."""


A = TypeVar("A", bound=Arguments)


def build_parser(arguments: type[Arguments], description: str, prog: str | None = None) -> HfArgumentParser:
    """Build a parser with one option for each field of `arguments`, grouped by the class that declares it."""
    groups = [base for base in arguments.__mro__ if "_argument_group_name" in vars(base)]
    parser = HfArgumentParser(groups, prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file with any of these options. Options on the command line come before those of the file.",
    )
    options = [field for field in fields(arguments) if field.init and field.default is not MISSING]
    parser.set_defaults(**{field.name: field.default for field in options})
    return parser


def parse(arguments: type[A], description: str, argv: Sequence[str] | None = None, prog: str | None = None) -> A:
    """
    Parse and check `argv`, and the config file that it names. An error is printed as argparse prints its own, and ends
    the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(arguments, description, prog)
    try:
        config = _read_config(parser, argv, arguments)
        namespace, unknown = parser.parse_known_args([*config.argv, *argv])
        if unknown:
            known = [name for action in parser._actions for name in action.option_strings]
            hint = nearest(unknown[0].split("=")[0], known) if unknown[0].startswith("--") else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        del namespace.config
        args = arguments(**vars(namespace))
    except ValueError as error:
        parser.error(str(error))
    if config.datasets is not None:
        shared = ("path", "weight")
        args.dataset_options = [{name: own[name] for name in own if name not in shared} for own in config.datasets]
    return args


def _read_config(parser: ArgumentParser, argv: list[str], arguments: type[Arguments]) -> ConfigFile:
    """Read the file of `--config`. Datasets on the command line replace all of the file."""
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    path = early.parse_known_args(argv)[0].config
    if path is None:
        return ConfigFile([])
    config = read_config(path, parser, COLUMNS, TASKS)
    if config.datasets is not None:
        if not issubclass(arguments, DataArguments):
            raise ValueError(
                f"--config {path}: datasets with options of their own are not supported here; use dataset"
            )
        names = next(action.option_strings for action in parser._actions if action.dest == "dataset")
        if any(word.split("=")[0] in names for word in argv):
            config.datasets = None
        else:
            config.argv += ["--dataset", *(own["path"] for own in config.datasets)]
            config.argv += ["--dataset_weights", *(str(own.get("weight", 1.0)) for own in config.datasets)]
    return config


def as_json(args: Arguments) -> dict[str, Any]:
    """Return the arguments as JSON values, without secrets."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    values.pop("hub_token", None)
    return values


def relative_to_output(folder: str, output_dir: str) -> str:
    """Describe a folder inside the output folder independently of where that is. Other folders stay as they are."""
    inside = Path(folder).is_relative_to(output_dir)
    return f"<output_dir>/{Path(folder).relative_to(output_dir)}" if inside else folder
