"""LoRA: a small adapter is trained beside weights that stay as they are."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from ...loaders import CHANGES_BASE, public_name
from ...pipelines import AudioXPipeline
from ..arguments import check_above_0, check_at_least, check_share, place
from ..export import CARD, read_log, staged, upload
from ..parts import MixedDataset, enable_gradient_checkpointing, frozen_dtypes, open_pipeline
from .early_stopping import EarlyStopping, build_early_stopping
from .full import FullTuning
from .lora_card import lora_card, make_samples
from .prior import PriorPreservationStrategy, open_prior_sounds, write_prior_sounds
from .quantization import QUANTIZATIONS, check_quantization, quantization_config

FILE = "pytorch_lora_weights.safetensors"
SAMPLES = "samples"
ADAPTER = "default"
INITS = ("default", "gaussian", "orthogonal", "olora", "pissa")
# The output projection of the MMDiT's attention is a convolution.
TARGETS = {
    "AudioXTransformer2DModel": ["to_q", "to_k", "to_v", "to_out.0"],
    "AudioXMMTransformer2DModel": ["to_q", "to_k", "to_v", "to_out"],
}
# The projections to video and audio tokens, without the blocks and the fusion of the conditioner.
PROJECTIONS = r"(video|audio)_proj\.(proj|proj_sync|proj_time)"


class LoraTuning(FullTuning):
    """
    Train LoRA layers (arXiv 2106.09685) in the transformer, and optionally in the conditioner's projections. All other
    weights are frozen, in half precision with mixed precision, or quantized.

    Args:
        args: of the run.
    """

    description = "Train a LoRA adapter for AudioX."

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.encoders = ()
        self.names = ("transformer", "conditioner")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        _add_adapter(parser.add_argument_group("adapter"))
        _add_prior(parser.add_argument_group("prior preservation and early stopping"))
        group = parser.add_argument_group("model card")
        group.add_argument("--trigger_words", nargs="+", help="what captions say to ask for the new sound")
        group.add_argument("--data_license", help="licence of the data")
        parser.add_argument(
            "--no_cache_latents",
            action="store_true",
            help="encode the data anew in every step; otherwise it is cached, by default in cache in the output folder",
        )
        parser.set_defaults(learning_rate=1e-4, train_batch_size=1)

    @staticmethod
    def check_arguments(args: argparse.Namespace) -> None:
        for name in ("rank", "num_class_sounds", "early_stopping_patience"):
            check_at_least(args, name, 1)
        for name in ("lora_alpha", "prior_loss_weight"):
            check_above_0(args, name)
        check_share(args, "lora_dropout")
        init = args.init_lora_weights
        if init not in INITS and not re.fullmatch(r"pissa_niter_\d+", init):
            raise ValueError(f"--init_lora_weights must be one of {', '.join(INITS)}, pissa_niter_N, got {init!r}")
        if init.startswith(CHANGES_BASE):
            for name in ("use_dora", "quantization"):
                if getattr(args, name):
                    raise ValueError(
                        f"--init_lora_weights {init} changes the base model's weights; leave out --{name}"
                    )
        if init == "orthogonal" and args.rank % 2:
            raise ValueError(f"--init_lora_weights orthogonal needs an even --rank, got {args.rank}")
        check_quantization(args)
        if args.no_cache_latents and args.cache_latents is not None:
            raise ValueError("--no_cache_latents does not go with --cache_latents")
        if not args.no_cache_latents:
            args.cache_latents = args.cache_latents or args.output_dir / "cache"
        if args.with_prior_preservation:
            args.class_data_dir = args.class_data_dir or args.output_dir / "class"

    def check_devices(self, accelerator: Accelerator) -> None:
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                "an adapter has next to nothing that could be sharded; run without FSDP and DeepSpeed, on one GPU or"
                " with DDP"
            )
        quantization, device = self.args.quantization, accelerator.device.type
        if quantization is not None and device == "cpu" and accelerator.mixed_precision != "no":
            raise ValueError(
                f"--quantization {quantization} goes with float32 alone on a CPU, got --mixed_precision"
                f" {accelerator.mixed_precision}"
            )

    def load_pipeline(self, frozen_dtype: torch.dtype) -> AudioXPipeline:
        """
        The pipeline, with a transformer in `frozen_dtype` or quantized.

        Raises:
            ValueError: it cannot be loaded, or its transformer lacks the modules that are to get layers.
        """
        args = self.args
        options = {}
        if args.quantization is not None:
            options["quantization_config"] = quantization_config(args.quantization, frozen_dtype)
        dtypes = {"transformer": frozen_dtype, **frozen_dtypes((), frozen_dtype)}
        pipe = open_pipeline(args, dtypes, **options)
        # Before all that takes long.
        check_targets(pipe.transformer, self._targets(pipe)["transformer"])
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(pipe.transformer)
        return pipe

    def prepare_data(self, pipe: AudioXPipeline, accelerator: Accelerator) -> None:
        """The sounds of prior preservation, made by the base model."""
        if self.args.with_prior_preservation:
            write_prior_sounds(self.args, pipe, accelerator)

    def open_datasets(self) -> list[MixedDataset]:
        """With the sounds of prior preservation last, of which half of all samples come."""
        datasets = super().open_datasets()
        if not self.args.with_prior_preservation:
            return datasets
        return [*datasets, open_prior_sounds(self.args, sum(dataset.weight for dataset in datasets))]

    def cache_description(self) -> dict[str, Any]:
        """Where the sounds of prior preservation are."""
        args = self.args
        if not args.with_prior_preservation:
            return {}
        return {"class_data_dir": place(str(args.class_data_dir), str(args.output_dir))}

    def prepare_model(self, pipe: AudioXPipeline) -> None:
        """
        Add the adapter, in float32.

        Raises:
            ValueError: the initialisation does not go with the modules.
        """
        args, self._initial = self.args, {}
        for component, targets in self._targets(pipe).items():
            model = getattr(pipe, component)
            config = LoraConfig(
                r=args.rank,
                lora_alpha=args.rank if args.lora_alpha is None else args.lora_alpha,
                lora_dropout=args.lora_dropout,
                target_modules=targets,
                init_lora_weights=True if args.init_lora_weights == "default" else args.init_lora_weights,
                use_dora=args.use_dora,
                use_rslora=args.use_rslora,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)
                try:
                    model.add_adapter(config, ADAPTER)
                except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
                    names = targets if isinstance(targets, str) else " ".join(targets)
                    raise ValueError(
                        f"--target_modules {names} and --init_lora_weights {args.init_lora_weights}: {error}"
                    ) from error
            cast_training_params(model)
            model.train()
            if args.init_lora_weights.startswith(CHANGES_BASE):
                # These layers are taken out of the base, and of the adapter when it is exported.
                self._initial[component] = self._layers(model)

    def build_strategy(self, pipe: AudioXPipeline):
        strategy = super().build_strategy(pipe)
        if self.args.with_prior_preservation:
            return PriorPreservationStrategy(strategy, len(self.args.dataset), self.args.prior_loss_weight)
        return strategy

    def build_early_stopping(self, *parts: object) -> EarlyStopping | None:
        return None if self.args.held_out is None else build_early_stopping(self.args, *parts)

    def export(self, pipe: AudioXPipeline, model: nn.Module, accelerator: Accelerator, log: Path) -> None:
        """The adapter in one file, a model card, and sounds that it makes."""
        if not accelerator.is_main_process:
            return
        adapters = {}
        for component in self._targets(pipe):
            layers, config = self._plain_lora(component, getattr(pipe, component))
            adapters |= {f"{component}_lora_layers": layers, f"{component}_lora_adapter_metadata": config}
        with staged(self.args.output_dir) as folder:
            with accelerator.autocast():
                samples = make_samples(self.args, pipe, folder / SAMPLES)
            pipe.save_lora_weights(
                folder,
                weight_name=FILE,
                **adapters,
                base_model_metadata=pipe.base_model_metadata(public_name(self.args.pretrained_model_name_or_path)),
            )
            (folder / CARD).write_text(
                lora_card(self.args, pipe, adapters["transformer_lora_adapter_metadata"], samples, read_log(log)),
                encoding="utf-8",
            )

    def push_to_hub(self) -> None:
        upload(self.args, [FILE, f"{SAMPLES}/*"])

    def _targets(self, pipe: AudioXPipeline) -> dict[str, list[str] | str]:
        """Return the modules that get layers, for each component."""
        targets = {"transformer": self.args.target_modules or TARGETS[type(pipe.transformer).__name__]}
        return targets | {"conditioner": PROJECTIONS} if self.args.train_conditioner else targets

    @staticmethod
    def _layers(model: nn.Module) -> dict[str, torch.Tensor]:
        layers = get_peft_model_state_dict(model, adapter_name=ADAPTER)
        return {key: tensor.detach().cpu().clone() for key, tensor in layers.items()}

    def _plain_lora(self, component: str, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict]:
        """
        Layers and configuration of an adapter for the base as it was. Where its weights were changed to
        `W - s B0 A0`, the layers are `[A; A0]` and `[B, -B0]`, of twice the rank and the same scale `s`.
        """
        layers, config = self._layers(model), model.peft_config[ADAPTER].to_dict()
        if component not in self._initial:
            return layers, config
        for key, initial in self._initial[component].items():
            if "lora_A" in key:
                layers[key] = torch.cat((layers[key], initial), dim=0)
            else:
                layers[key] = torch.cat((layers[key], -initial), dim=1)
        factor = 2**0.5 if config["use_rslora"] else 2
        return layers, {
            **config,
            "init_lora_weights": True,
            "r": 2 * config["r"],
            "lora_alpha": factor * config["lora_alpha"],
        }


def _add_adapter(group) -> None:
    group.add_argument("--rank", type=int, default=16, help="of the layers; 16 by default")
    group.add_argument("--lora_alpha", type=float, help="the layers' output is scaled by alpha / rank; by default 1")
    group.add_argument("--lora_dropout", type=float, default=0.0)
    group.add_argument(
        "--target_modules", nargs="+", help="modules of the transformer that get layers; by default those of attention"
    )
    group.add_argument(
        "--init_lora_weights",
        default="default",
        help=f"{', '.join(INITS)}, or pissa_niter_N, its fast variant with N iterations; see peft.LoraConfig",
    )
    group.add_argument("--use_dora", action="store_true", help="DoRA (arXiv 2402.09353)")
    group.add_argument("--use_rslora", action="store_true", help="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    group.add_argument(
        "--train_conditioner",
        action="store_true",
        help="add layers to the conditioner's projections of video and audio too",
    )
    group.add_argument(
        "--quantization", choices=tuple(QUANTIZATIONS), help="of the base model's transformer; bnb needs a GPU"
    )


def _add_prior(group) -> None:
    group.add_argument(
        "--with_prior_preservation",
        action="store_true",
        help="train on sounds that the base model made for other captions too, so that it does not forget them",
    )
    group.add_argument("--prior_loss_weight", type=float, default=1.0)
    group.add_argument("--class_data_dir", type=Path, help="where they are; by default class in the output folder")
    group.add_argument("--class_prompt", nargs="+", help="the captions that they are made for, in turn")
    group.add_argument("--num_class_sounds", type=int, default=50, help="as many are made as are missing")
    group.add_argument(
        "--held_out",
        help="a dataset of clips that are not trained on: every --validation_steps their loss is measured, and the best"
        " adapter is kept",
    )
    group.add_argument(
        "--early_stopping_patience", type=int, default=3, help="so many measurements without a better one end the run"
    )


def check_targets(transformer: nn.Module, targets: list[str]) -> None:
    """`ValueError` naming the first that is no linear layer and no convolution of the transformer, and what is."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d))]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({re.sub(r".*\d+\.(?=\D)", "", name) for name in names})
            raise ValueError(
                f"--target_modules {target}: {type(transformer).__name__} has no such module, but {', '.join(known)}"
            )
