"""Training of a LoRA adapter on a frozen base model."""

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

from ...atomic import filling
from ...loaders import CHANGES_BASE, public_name
from ...messages import first_line
from ...pipelines import AudioXPipeline
from ..arguments import relative_to_output
from ..cards import CARD, lora_card
from ..data.sources import MixedDataset
from ..export import read_log, upload
from ..strategy import DiffusionStrategy
from ..validation import write_samples
from .activations import enable_gradient_checkpointing
from .full import FullTraining, frozen_dtypes, open_pipeline
from .lora_arguments import LoraArguments
from .prior import PriorPreservationStrategy, open_prior_data, write_prior_data
from .quantization import quantization_config

FILE = "pytorch_lora_weights.safetensors"
SAMPLES = "samples"
ADAPTER = "default"
# The output projection of the MMDiT's attention is a convolution.
TARGETS = {
    "AudioXTransformer2DModel": ["to_q", "to_k", "to_v", "to_out.0"],
    "AudioXMMTransformer2DModel": ["to_q", "to_k", "to_v", "to_out"],
}
BLOCKS = "transformer_blocks"
# The projections to video and audio tokens, without the blocks and the fusion of the conditioner.
PROJECTIONS = r"(video|audio)_proj\.(proj|proj_sync|proj_time)"


class LoraTraining(FullTraining):
    """
    Train LoRA layers (arXiv 2106.09685) in the transformer, and optionally in the conditioner's projections. All other
    weights are frozen, in half precision with mixed precision, or quantized.

    Args:
        args: Options of the run.
    """

    description = "Train a LoRA adapter for AudioX."
    arguments = LoraArguments

    def __init__(self, args: LoraArguments):
        self.args = args
        self.encoders = ()
        self.names = ("transformer", "conditioner")

    def check_devices(self, accelerator: Accelerator) -> None:
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                "LoRA training does not support FSDP and DeepSpeed, because an adapter is too small to shard; use one"
                " GPU or DDP"
            )
        quantization, device = self.args.quantization, accelerator.device.type
        if quantization is not None and device == "cpu" and accelerator.mixed_precision != "no":
            raise ValueError(
                f"--quantization {quantization} on a CPU needs float32, got --mixed_precision"
                f" {accelerator.mixed_precision}"
            )

    def load_pipeline(self, frozen_dtype: torch.dtype) -> AudioXPipeline:
        """
        Load the pipeline, with the transformer in `frozen_dtype` or quantized.

        Raises:
            ValueError: The pipeline cannot be loaded, or its transformer lacks a target module.
        """
        args = self.args
        options = {}
        if args.quantization is not None:
            options["quantization_config"] = quantization_config(args.quantization, frozen_dtype)
        dtypes = {"transformer": frozen_dtype, **frozen_dtypes((), frozen_dtype)}
        pipe = open_pipeline(args, args.cache_dir, dtypes, **options)
        # Fail before anything slow starts.
        if args.init_adapter is None:
            check_targets(pipe.transformer, self._targets(pipe)["transformer"], args.blocks())
        else:
            # Generated audio for prior preservation is that of the base alone.
            self._load_adapter(pipe)
            pipe.unload_lora_weights()
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(pipe.transformer, args.gradient_checkpointing_interval)
        return pipe

    def prepare_data(self, pipe: AudioXPipeline, accelerator: Accelerator) -> None:
        """Generate the missing audio for prior preservation."""
        if self.args.with_prior_preservation:
            write_prior_data(self.args, pipe, accelerator)

    def open_datasets(self) -> list[MixedDataset]:
        """Open all datasets. The one of prior preservation comes last and gives half of all samples."""
        datasets = super().open_datasets()
        if not self.args.with_prior_preservation:
            return datasets
        return [*datasets, open_prior_data(self.args, sum(dataset.weight for dataset in datasets))]

    def cache_settings(self) -> dict[str, Any]:
        args = self.args
        if not args.with_prior_preservation:
            return {}
        return {"--class_data_dir": relative_to_output(str(args.class_data_dir), str(args.output_dir))}

    def prepare_model(self, pipe: AudioXPipeline) -> None:
        """
        Add the adapter, in float32.

        Raises:
            ValueError: The target modules do not support the initialization.
        """
        args, self._initial = self.args, {}
        loaded = set() if args.init_adapter is None else self._load_adapter(pipe)
        for component, targets in self._targets(pipe).items():
            model = getattr(pipe, component)
            if component in loaded:
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_("lora_" in name)
                cast_training_params(model)
                model.train()
                continue
            blocks = args.blocks() if component == "transformer" else None
            config = LoraConfig(
                r=args.rank,
                lora_alpha=args.rank if args.lora_alpha is None else args.lora_alpha,
                lora_dropout=args.lora_dropout,
                target_modules=targets,
                layers_to_transform=blocks,
                layers_pattern=None if blocks is None else BLOCKS,
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
                # Such an initialization moves weights from the base to the adapter. The export moves them back.
                self._initial[component] = self._layers(model)

    def _load_adapter(self, pipe: AudioXPipeline) -> set[str]:
        """Load `--init_adapter`. Returns the components that it has layers in."""
        args = self.args
        try:
            pipe.load_lora_weights(
                args.init_adapter, adapter_name=ADAPTER, cache_dir=args.cache_dir, use_safetensors=True
            )
        except (ValueError, OSError) as error:
            raise ValueError(f"--init_adapter {args.init_adapter}: {first_line(error)}") from error
        loaded = {name for name in self.names if ADAPTER in getattr(getattr(pipe, name), "peft_config", {})}
        if "conditioner" in loaded and not args.train_conditioner:
            raise ValueError(
                f"--init_adapter {args.init_adapter} has layers in the conditioner; add --train_conditioner"
            )
        return loaded

    def build_strategy(self, pipe: AudioXPipeline, accelerator: Accelerator) -> DiffusionStrategy:
        strategy = super().build_strategy(pipe, accelerator)
        if self.args.with_prior_preservation:
            return PriorPreservationStrategy(strategy, len(self.args.dataset), self.args.prior_loss_weight)
        return strategy

    def export(self, pipe: AudioXPipeline, model: nn.Module, accelerator: Accelerator, log: Path) -> None:
        """Write the adapter, a model card and samples into the output folder."""
        if not accelerator.is_main_process:
            return
        args, adapters = self.args, {}
        for component in self._targets(pipe):
            layers, config = self._plain_lora(component, getattr(pipe, component))
            adapters |= {f"{component}_lora_layers": layers, f"{component}_lora_adapter_metadata": config}
        with filling(args.output_dir) as folder:
            with accelerator.autocast():
                samples = write_samples(pipe, args, args.trigger_words or [], folder / SAMPLES)
            pipe.save_lora_weights(
                folder,
                weight_name=FILE,
                **adapters,
                base_model_metadata=pipe.base_model_metadata(public_name(args.pretrained_model_name_or_path)),
            )
            card = lora_card(args, adapters["transformer_lora_adapter_metadata"], samples, read_log(log))
            (folder / CARD).write_text(card, encoding="utf-8")

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
        Return layers and configuration of an adapter for the original base model.

        If the initialization changed the base to `W - s B0 A0`, the layers are `[A; A0]` and `[B, -B0]`: twice the rank
        at the same scale `s`.
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


def check_targets(transformer: nn.Module, targets: list[str], blocks: list[int] | None = None) -> None:
    """Raise `ValueError` if a target matches no linear layer or convolution of the transformer, or of its `blocks`."""
    count = len(transformer.transformer_blocks)
    if blocks is not None and blocks[-1] >= count:
        raise ValueError(f"--target_blocks must be in 0..{count - 1}, the blocks of the transformer, got {blocks[-1]}")
    names = [name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d))]
    if blocks is not None:
        names = [name for name in names if name.startswith(tuple(f"{BLOCKS}.{number}." for number in blocks))]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({re.sub(r".*\d+\.(?=\D)", "", name) for name in names})
            place = f"{type(transformer).__name__} has" if blocks is None else "the blocks of --target_blocks have"
            raise ValueError(f"--target_modules {target}: {place} no such module, but {', '.join(known)}")
