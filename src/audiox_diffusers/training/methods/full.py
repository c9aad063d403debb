"""What of the pipeline a run trains, and what it makes of it: the seam at which adapters take over."""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ...pipelines import AudioXPipeline
from ..export import export_pipeline, push_to_hub
from ..objective import TimestepSampler, objective_for
from ..parts import (
    ENCODERS,
    MixedDataset,
    enable_gradient_checkpointing,
    frozen_dtypes,
    open_datasets,
    open_pipeline,
)
from ..strategy import DiffusionStrategy
from .early_stopping import EarlyStopping


class FullTuning:
    """
    All weights of transformer and conditioner are trained, and of the encoders that the arguments name.

    Another way of training has the same methods; [`LoraTuning`] is one. The trainer calls them in the order in which
    they stand here.

    Args:
        args: of the run.

    Attributes:
        names (`tuple[str, ...]`): components that are trained or hold what is trained.
        encoders (`tuple[str, ...]`): those of them that encode the data, too.
    """

    description = "Train AudioX on all its tasks."

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.encoders = tuple(name for name in ENCODERS if getattr(args, f"train_{name}"))
        self.names = ("transformer", "conditioner", *self.encoders)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """What no other way of training has."""
        group = parser.add_argument_group("what is trained")
        group.add_argument(
            "--from_scratch",
            action="store_true",
            help="start transformer and conditioner from random weights; the encoders and the VAE stay as they are",
        )
        for name, what in (
            ("text_encoder", "T5"),
            ("image_encoder", "CLIP"),
            ("sync_encoder", "Synchformer"),
            ("vae", "the encoder of the VAE, through audio prompts"),
        ):
            group.add_argument(
                f"--train_{name}", action="store_true", help=f"train {what} too, which is frozen otherwise"
            )

    @staticmethod
    def check_arguments(args: argparse.Namespace) -> None:
        """`ValueError` naming what is wrong with them. What depends on others is filled in."""
        trained = [name for name in ENCODERS if getattr(args, f"train_{name}")]
        if args.cache_latents is not None and trained:
            raise ValueError(f"--cache_latents keeps what frozen encoders give; leave out --train_{trained[0]}")

    def check_devices(self, accelerator: Accelerator) -> None:
        """`ValueError` for a way of spreading the run over devices that it does not go with."""
        if accelerator.distributed_type == DistributedType.FSDP and self.encoders:
            # They encode the data too, outside of the step for which FSDP gathers them.
            raise ValueError(f"--train_{self.encoders[0]} needs whole weights; with FSDP leave it out")

    def load_pipeline(self, frozen_dtype: torch.dtype) -> AudioXPipeline:
        """
        The pipeline to train: what is trained in float32, other encoders in `frozen_dtype`, the VAE in float32.

        Raises:
            ValueError: it cannot be loaded, or lacks what is to be trained.
        """
        args = self.args
        pipe = open_pipeline(args, frozen_dtypes(self.encoders, frozen_dtype))
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
                enable_gradient_checkpointing(getattr(pipe, name))
        # Nothing that is trained on goes through the decoder.
        pipe.vae.decoder.requires_grad_(False)
        return pipe

    def prepare_data(self, pipe: AudioXPipeline, accelerator: Accelerator) -> None:
        """Make data that the run needs and that is not there; there is none."""

    def open_datasets(self) -> list[MixedDataset]:
        """What records are drawn from: first the datasets that the arguments name."""
        return open_datasets(self.args)

    def cache_description(self) -> dict[str, Any]:
        """What else decides what is in a cache; nothing."""
        return {}

    def build_strategy(self, pipe: AudioXPipeline) -> DiffusionStrategy:
        """The loss."""
        args = self.args
        timesteps = TimestepSampler(args.weighting_scheme, args.seed, args.logit_mean, args.logit_std)
        return DiffusionStrategy(objective_for(pipe.scheduler), timesteps, args.snr_gamma)

    def build_early_stopping(self, *parts: object) -> EarlyStopping | None:
        """What ends the run before its last step; nothing does."""
        return None

    def prepare_model(self, pipe: AudioXPipeline) -> None:
        """Add to the networks what is trained of them; all of it is there."""

    def export(self, pipe: AudioXPipeline, model: nn.Module, accelerator: Accelerator, log: Path) -> None:
        """Write what was trained into the output folder. All processes call this."""
        state_dict = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            export_pipeline(self.args, pipe, self.names, state_dict, log)

    def push_to_hub(self) -> None:
        """Upload what `export` wrote."""
        push_to_hub(self.args)
