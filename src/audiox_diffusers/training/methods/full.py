"""Training of the whole transformer and conditioner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.hf_argparser import HfArg

from ...messages import first_line
from ...pipelines import AudioXPipeline
from ..arguments import Arguments, ModelArguments, TrainingArguments
from ..data.encoding import ENCODERS, RecordEncoder
from ..data.sources import MixedDataset, open_datasets
from ..export import export_pipeline, push_to_hub
from ..objective import TimestepSampler, objective_for
from ..strategy import DiffusionStrategy
from .activations import enable_gradient_checkpointing
from .early_stopping import EarlyStopping, build_early_stopping
from .held_out_arguments import HeldOutArguments
from .model import AudioXTrainingModel


@dataclass(kw_only=True)
class TrainedArguments(Arguments):
    _argument_group_name = "trained components"

    from_scratch: bool = HfArg(
        default=False,
        help="Start transformer and conditioner from random weights. Encoders and VAE keep their weights.",
    )
    train_text_encoder: bool = HfArg(default=False, help="Train T5 too.")
    train_image_encoder: bool = HfArg(default=False, help="Train CLIP too.")
    train_sync_encoder: bool = HfArg(default=False, help="Train Synchformer too.")
    train_vae: bool = HfArg(default=False, help="No longer available; use training/train_vae.py.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_vae:
            raise ValueError(
                "--train_vae is no longer available: audio prompts alone pull the VAE's encoder away from its decoder,"
                " so edited and reconstructed audio gets worse; train a VAE with training/train_vae.py"
            )

    @property
    def trained_encoders(self) -> tuple[str, ...]:
        """Components that encode the data and are trained."""
        return tuple(name for name in ENCODERS if getattr(self, f"train_{name}"))


@dataclass(kw_only=True)
class FullArguments(TrainingArguments, TrainedArguments, HeldOutArguments):
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_latents is not None and self.trained_encoders:
            raise ValueError(
                f"--cache_latents caches the output of frozen encoders; leave out --train_{self.trained_encoders[0]}"
            )


class FullTraining:
    """
    Train all weights of transformer and conditioner, and of the encoders that the options name.

    Other training methods, such as [`LoraTraining`], override these methods. The trainer calls them in the order in
    which they are defined.

    Args:
        args: Options of the run.

    Attributes:
        names (`tuple[str, ...]`): Components with trained weights.
        encoders (`tuple[str, ...]`): Those of them that encode the data.
    """

    description = "Train AudioX on all its tasks."
    arguments = FullArguments

    def __init__(self, args: FullArguments):
        self.args = args
        self.encoders = args.trained_encoders
        self.names = ("transformer", "conditioner", *self.encoders)

    def check_devices(self, accelerator: Accelerator) -> None:
        """Raise `ValueError` if the method does not support how the run is distributed."""
        if accelerator.distributed_type == DistributedType.FSDP and self.encoders:
            # They also encode the data, outside of the step for which FSDP gathers their weights.
            raise ValueError(f"--train_{self.encoders[0]} needs whole weights, which FSDP does not keep; leave it out")
        sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if sharded and self.args.held_out is not None:
            raise ValueError("--held_out needs whole weights; leave it out with FSDP and DeepSpeed")

    def load_pipeline(self, frozen_dtype: torch.dtype) -> AudioXPipeline:
        """
        Load the pipeline, with trained components in float32, frozen encoders in `frozen_dtype` and the VAE in float32.

        Raises:
            ValueError: The pipeline cannot be loaded, or lacks a component to train.
        """
        args = self.args
        pipe = open_pipeline(args, args.cache_dir, frozen_dtypes(self.encoders, frozen_dtype))
        for name in self.names:
            if getattr(pipe, name) is None:
                raise ValueError(f"--train_{name}: the model has no {name}")
        if args.from_scratch:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)
                for name in ("transformer", "conditioner"):
                    component = getattr(pipe, name)
                    pipe.register_modules(**{name: type(component).from_config(component.config)})
        for name in self.names:
            getattr(pipe, name).requires_grad_(True).train()
            if args.gradient_checkpointing:
                enable_gradient_checkpointing(getattr(pipe, name), args.gradient_checkpointing_interval)
        return pipe

    def prepare_data(self, pipe: AudioXPipeline, accelerator: Accelerator) -> None:
        """Generate data that the run needs."""

    def open_datasets(self) -> list[MixedDataset]:
        """Open all datasets, those of `--dataset` first."""
        return open_datasets(self.args)

    def cache_settings(self) -> dict[str, Any]:
        """Return further settings that decide the contents of a latent cache."""
        return {}

    def build_strategy(self, pipe: AudioXPipeline, accelerator: Accelerator) -> DiffusionStrategy:
        args = self.args
        timesteps = TimestepSampler(args.weighting_scheme, args.seed, args.logit_mean, args.logit_std)
        return DiffusionStrategy(objective_for(pipe.scheduler), timesteps, args.snr_gamma)

    def build_early_stopping(self, *parts: object) -> EarlyStopping | None:
        """Build early stopping, `None` to train to the last step. For `parts` see [`build_early_stopping`]."""
        return None if self.args.held_out is None else build_early_stopping(self.args, *parts)

    def prepare_model(self, pipe: AudioXPipeline) -> None:
        """Add trained layers to the networks."""

    def build_model(self, encoder: RecordEncoder, autocast_dtype: torch.dtype | None) -> nn.Module:
        """Build the module that accelerate wraps and whose weights are trained."""
        return AudioXTrainingModel(encoder, autocast_dtype)

    def export(self, pipe: AudioXPipeline, model: nn.Module, accelerator: Accelerator, log: Path) -> None:
        """Write the trained model into the output folder. All processes call this."""
        state_dict = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            export_pipeline(self.args, pipe, self.names, state_dict, log)

    def push_to_hub(self) -> None:
        """Upload what `export` wrote."""
        push_to_hub(self.args)


def open_pipeline(
    args: ModelArguments, cache_dir: str | None, dtype: dict[str, torch.dtype], **options: Any
) -> AudioXPipeline:
    """
    Load the pipeline that training starts from, with all networks frozen and in evaluation mode.

    Args:
        args: Names the pipeline.
        cache_dir, dtype, options: Arguments of `from_pretrained`.

    Raises:
        ValueError: The pipeline cannot be loaded.
    """
    try:
        pipe = AudioXPipeline.from_pretrained(
            args.pretrained_model_name_or_path,
            revision=args.revision,
            variant=args.variant,
            cache_dir=cache_dir,
            dtype=dtype,
            **options,
        )
    except OSError as error:
        reason = first_line(error)
        raise ValueError(f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path}: {reason}") from error
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    if args.enable_tiling:
        pipe.vae.enable_tiling()
    return pipe


def frozen_dtypes(trained: tuple[str, ...], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """
    Return `from_pretrained` dtypes that load frozen encoders in `dtype` and everything else in float32.

    Loading keeps layers that overflow in `dtype` in float32. So the dtype is set there, not afterwards.
    """
    return {"default": torch.float32, **{name: dtype for name in ENCODERS if name not in (*trained, "vae")}}
