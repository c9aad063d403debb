"""Distillation of a pipeline into one that needs a few steps and no guidance."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from ...atomic import filling
from ...loaders import public_name
from ...pipelines import AudioXPipeline
from ...schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from ..arguments import as_json
from ..cards import CARD, student_card
from ..data.encoding import RecordEncoder
from ..distillation.networks import STUDENT, AdapterNetworks, FullNetworks
from ..distillation.ode_pairs import OdePairs
from ..distillation.settings import DistillationSettings
from ..distillation.strategies import ConsistencyStrategy, DistillationStrategy, DistributionMatchingStrategy
from ..export import export_pipeline, push_to_hub, read_log, upload
from ..objective import TimestepSampler, objective_for
from ..precision import half_dtype
from ..run.checkpoints import MAY_CHANGE
from .activations import enable_gradient_checkpointing
from .distill_arguments import DistillArguments
from .full import FullTraining, frozen_dtypes, open_pipeline
from .lora import FILE, TARGETS, check_targets
from .model import encode_conditions

ODE_PAIRS = "ode-pairs"


class DistillTraining(FullTraining):
    """
    Train a student that needs a few steps and no guidance. The conditioner stays the teacher's.

    Args:
        args: Options of the run.
    """

    description = "Distill AudioX into a model that needs a few steps and no guidance."
    arguments = DistillArguments

    def __init__(self, args: DistillArguments):
        self.args = args
        self.encoders = ()
        self.names = ("transformer",)

    def check_devices(self, accelerator: Accelerator) -> None:
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("distillation does not support FSDP and DeepSpeed; use one GPU or DDP")
        if accelerator.mixed_precision == "fp16":
            raise ValueError("distillation does not support float16; use --mixed_precision bf16 or no")

    def load_pipeline(self, frozen_dtype: torch.dtype) -> AudioXPipeline:
        """
        Load the teacher, and give its pipeline the scheduler and the defaults of the student.

        Raises:
            ValueError: The pipeline cannot be loaded, has a few steps already, or its guidance is not known.
        """
        args = self.args
        dtypes = frozen_dtypes((), frozen_dtype)
        if args.student == "adapter":
            dtypes["transformer"] = frozen_dtype
        pipe = open_pipeline(args, args.cache_dir, dtypes)
        if args.student == "adapter":
            check_targets(pipe.transformer, self._targets(pipe))
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(pipe.transformer, args.gradient_checkpointing_interval)
        if getattr(pipe.scheduler.config, "stochastic_sampling", False):
            raise ValueError(
                f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path} is a few-step model already; use"
                " its teacher"
            )
        self.objective = objective_for(pipe.scheduler)
        self.guidance_scale = args.teacher_guidance_scale
        if self.guidance_scale is None:
            self.guidance_scale = pipe.config.default_guidance_scale
            if self.guidance_scale == 1:
                raise ValueError(
                    "--teacher_guidance_scale is missing, and the pipeline's default is 1, which is no guidance; give"
                    " the scale that the student should learn"
                )
        self.timesteps = args.student_timesteps or default_timesteps(pipe.scheduler, args.num_student_steps)
        try:
            pipe.scheduler = type(pipe.scheduler).from_config(
                pipe.scheduler.config, stochastic_sampling=True, distilled_timesteps=self.timesteps
            )
        except ValueError as error:
            raise ValueError(f"--student_timesteps: {error}") from error
        pipe.register_to_config(default_num_inference_steps=len(self.timesteps), default_guidance_scale=1.0)
        return pipe

    def build_strategy(self, pipe: AudioXPipeline, accelerator: Accelerator) -> DistillationStrategy:
        args, dtype = self.args, half_dtype(accelerator)
        if args.student == "full":
            self.networks = FullNetworks(pipe.transformer, self.guidance_scale, dtype)
        else:
            config = LoraConfig(
                r=args.rank, lora_alpha=args.lora_alpha or args.rank, target_modules=self._targets(pipe)
            )
            self.networks = AdapterNetworks(pipe.transformer, config, args.seed, self.guidance_scale, dtype)
        # accelerate moves only the networks, and the conditioner is not one of them.
        pipe.conditioner.to(accelerator.device)
        parts = (
            self.objective,
            TimestepSampler(args.weighting_scheme, args.seed, args.logit_mean, args.logit_std),
            lambda batch: encode_conditions(pipe.conditioner, batch.embeds, batch),
            self.networks,
            self._settings(),
        )
        if args.method == "consistency":
            return ConsistencyStrategy(*parts)
        pairs = None
        if args.ode_steps:
            batches = math.ceil(args.ode_pairs / (args.train_batch_size * accelerator.num_processes))
            folder = args.output_dir / ODE_PAIRS / self._digest()
            pairs = OdePairs(folder, batches, args.seed, accelerator.process_index)
        return DistributionMatchingStrategy(*parts, pairs=pairs)

    def build_early_stopping(self, *parts: object) -> None:
        """Return `None`: the loss of distillation does not say how good the student is."""

    def build_model(self, encoder: RecordEncoder, autocast_dtype: torch.dtype | None) -> nn.Module:
        return self.networks.model

    def export(self, pipe: AudioXPipeline, model: nn.Module, accelerator: Accelerator, log: Path) -> None:
        """Write the student, as a pipeline or as an adapter with its scheduler, into the output folder."""
        if not accelerator.is_main_process:
            return
        args = self.args
        facts = {
            "teacher guidance": f"{self.guidance_scale:g}",
            "times": ", ".join(f"{t:.4g}" for t in self.timesteps),
        }
        if args.student == "full":
            card = student_card(args, facts, read_log(log))
            export_pipeline(args, pipe, self.names, accelerator.get_state_dict(model), log, card)
            return
        with filling(args.output_dir) as folder:
            pipe.save_lora_weights(
                folder,
                weight_name=FILE,
                transformer_lora_layers=get_peft_model_state_dict(pipe.transformer, adapter_name=STUDENT),
                transformer_lora_adapter_metadata=pipe.transformer.peft_config[STUDENT].to_dict(),
                base_model_metadata=pipe.base_model_metadata(public_name(args.pretrained_model_name_or_path)),
            )
            pipe.scheduler.save_pretrained(folder / "scheduler")
            (folder / CARD).write_text(student_card(args, facts, read_log(log)), encoding="utf-8")

    def push_to_hub(self) -> None:
        if self.args.student == "full":
            push_to_hub(self.args)
        else:
            upload(self.args, [FILE, "scheduler/*"])

    def _targets(self, pipe: AudioXPipeline) -> list[str]:
        return self.args.target_modules or TARGETS[type(pipe.transformer).__name__]

    def _settings(self) -> DistillationSettings:
        args = self.args
        return DistillationSettings(
            timesteps=tuple(self.timesteps),
            seed=args.seed,
            accumulation_steps=args.gradient_accumulation_steps,
            companion_updates=args.fake_updates,
            companion_learning_rate=args.fake_learning_rate or args.learning_rate,
            adam_betas=(args.adam_beta1, args.adam_beta2),
            adam_epsilon=args.adam_epsilon,
            adam_weight_decay=args.adam_weight_decay,
            max_grad_norm=args.max_grad_norm,
            ode_steps=args.ode_steps,
            teacher_steps=args.teacher_steps,
            average_decay=args.average_decay,
        )

    def _digest(self) -> str:
        """Describe everything that decides the teacher's paths."""
        may_change = MAY_CHANGE | {"ode_steps", "learning_rate", "fake_learning_rate", "fake_updates"}
        values: dict[str, Any] = {name: value for name, value in as_json(self.args).items() if name not in may_change}
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def default_timesteps(scheduler: AudioXDPMSolverSDEScheduler | AudioXFlowMatchScheduler, count: int) -> list[float]:
    """
    Return the times of the student's steps, from noise (1) to clean (0).

    Those of rectified flow are evenly spaced: `1 - i / count`. Those of v-prediction have the same noise levels
    `s = t / (1 - t)`, converted by `atan(s) 2 / pi`. The first has the scheduler's `sigma_max`.
    """
    times = [1 - index / count for index in range(count)]
    if isinstance(scheduler, AudioXFlowMatchScheduler):
        return times
    levels = [scheduler.config.sigma_max, *(time / (1 - time) for time in times[1:])]
    return [math.atan(level) * 2 / math.pi for level in levels]
