"""The parts of a run, built from its arguments."""

import argparse
import json
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from transformers import PreTrainedModel

from ..loaders import architecture
from ..pipelines import AudioXPipeline
from .arguments import masking_config
from .data.records import COLUMNS, RecordReader, WindowSpec
from .data.sources import DatasetSource
from .methods.model import AudioXTrainingModel

ENCODERS = ("text_encoder", "image_encoder", "sync_encoder", "vae")


def open_pipeline(args: argparse.Namespace, dtype: dict[str, torch.dtype], **options: Any) -> AudioXPipeline:
    """
    The pipeline that training starts from, its networks frozen and in evaluation mode.

    Args:
        args: of the run.
        dtype, options: of `from_pretrained`.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        pipe = AudioXPipeline.from_pretrained(
            args.pretrained_model_name_or_path,
            revision=args.revision,
            variant=args.variant,
            cache_dir=args.cache_dir,
            dtype=dtype,
            **options,
        )
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path}: {reason}") from error
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    if args.enable_tiling:
        pipe.vae.enable_tiling()
    return pipe


def frozen_dtypes(trained: tuple[str, ...], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """
    For [`open_pipeline`]: frozen encoders in `dtype`, except for the layers that overflow in it, which only loading
    knows; all else in float32, the VAE too.
    """
    frozen = {name: dtype for name in ENCODERS if name not in (*trained, "vae")}
    return {**frozen, "default": torch.float32}


def enable_gradient_checkpointing(model: torch.nn.Module) -> None:
    """Of diffusers and of transformers, where the model can."""
    if isinstance(model, ModelMixin):
        if model._supports_gradient_checkpointing:
            model.enable_gradient_checkpointing()
    else:
        model.gradient_checkpointing_enable()


class MixedDataset(NamedTuple):
    """A dataset, its name for each of `COLUMNS` that it may have, and how much of it is drawn."""

    source: DatasetSource
    columns: dict[str, str]
    weight: float


def open_datasets(args: argparse.Namespace) -> list[MixedDataset]:
    """Those of `--dataset`; for errors see [`DatasetSource`] and [`find_columns`]."""
    sources = [
        DatasetSource(name, args.dataset_config_name, args.dataset_split, args.dataset_revision, args.cache_dir)
        for name in args.dataset
    ]
    columns = find_columns(args, sources)
    weights = args.dataset_weights or [1.0] * len(sources)
    return [MixedDataset(source, columns, weight) for source, weight in zip(sources, weights, strict=True)]


def find_columns(args: argparse.Namespace, sources: list[DatasetSource], option: str = "--dataset") -> dict[str, str]:
    """
    The datasets' name for each column that there is.

    Args:
        args: of the run.
        sources: the datasets.
        option: that named them.

    Raises:
        ValueError: a column that an argument names is missing, or there is neither sound nor video.
    """
    columns = {}
    for name in COLUMNS:
        given = getattr(args, f"{name}_column")
        column = given or name
        lacking = [source for source in sources if column.split(".")[0] not in source.columns]
        if given and lacking:
            raise ValueError(
                f"--{name}_column {given}: {lacking[0].name} has no such column, but {', '.join(lacking[0].columns)}"
            )
        if len(lacking) < len(sources):
            columns[name] = column
    for source in sources:
        if not {columns.get("audio"), columns.get("video")} & set(column.split(".")[0] for column in source.columns):
            raise ValueError(
                f"{option} {source.name} has neither a column audio nor a column video, but"
                f" {', '.join(source.columns)}; name one with --audio_column or --video_column"
            )
    return columns


def build_reader(args: argparse.Namespace, pipe: AudioXPipeline, datasets: list[MixedDataset]) -> RecordReader:
    """Decodes rows of the datasets for the pipeline."""
    columns = [dataset.columns for dataset in datasets]
    return RecordReader(WindowSpec.of(pipe), columns, masking_config(args), args.crop, args.min_seconds, args.seed)


def build_optimizer(args: argparse.Namespace, model: AudioXTrainingModel, num_processes: int) -> torch.optim.Optimizer:
    """AdamW of what is trained, also in 8 bits."""
    learning_rate = args.learning_rate
    if args.scale_lr:
        learning_rate *= args.train_batch_size * args.gradient_accumulation_steps * num_processes
    optimizer_class: Any = torch.optim.AdamW
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as optimizer_class
        except ImportError:
            raise ValueError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from None
    return optimizer_class(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )


def configs_of(pipe: AudioXPipeline, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The configs of components, see [`config_of`]."""
    return {name: config_of(getattr(pipe, name)) for name in names}


def config_of(model: ModelMixin | PreTrainedModel) -> dict[str, Any]:
    """How a network is built, see [`architecture`], as JSON holds it."""
    config = json.loads(model.config.to_json_string()) if isinstance(model, PreTrainedModel) else dict(model.config)
    return json.loads(json.dumps(architecture(config)))


def cache_description(args: argparse.Namespace, pipe: AudioXPipeline, datasets: list[MixedDataset]) -> dict[str, Any]:
    """All that decides what is in a cache."""
    names = (
        "dataset",
        "dataset_config_name",
        "dataset_split",
        "dataset_revision",
        "crop",
        "min_seconds",
        "video_prompt",
    )
    values = {name: getattr(args, name) for name in names}
    # Only a random crop is drawn.
    values["seed"] = args.seed if args.crop == "random" else None
    components = [name for name in ENCODERS if getattr(pipe, name) is not None]
    return {
        **values,
        # Where others are drawn from too, these come first.
        "columns": datasets[0].columns,
        "model": args.pretrained_model_name_or_path,
        "revision": args.revision,
        "dtypes": {name: str(getattr(pipe, name).dtype) for name in components},
        "configs": configs_of(pipe, (*components, "conditioner")),
    }
