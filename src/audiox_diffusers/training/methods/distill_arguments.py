"""Options of distillation."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from ..arguments import Arguments, Count, CountOrZero, Decay, Finite, Positive, TrainingArguments


@dataclass(kw_only=True)
class StudentArguments(Arguments):
    _argument_group_name = "student"

    num_student_steps: Count = HfArg(default=4, help="Steps of the student in sampling.")
    student_timesteps: list[Positive] | None = HfArg(
        default=None,
        help="Times of these steps, decreasing, at most 1. Defaults to evenly spaced times of rectified flow, or times of"
        " the same noise for v-prediction.",
    )
    student: Literal["full", "adapter"] = HfArg(
        default="full",
        help="full: copies of the whole transformer. adapter: LoRA adapters, which need little more memory than the"
        " teacher.",
    )
    rank: Count = HfArg(default=16, help="Rank of the adapters.")
    lora_alpha: Positive | None = HfArg(default=None, help="Alpha of the adapters. Defaults to the rank.")
    target_modules: list[str] | None = HfArg(
        default=None, help="Modules of the transformer that get adapters. Defaults to the attention projections."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        times = self.student_timesteps
        if times is None:
            return
        if len(times) != self.num_student_steps:
            raise ValueError(
                f"--student_timesteps must have --num_student_steps {self.num_student_steps} times, got {len(times)}"
            )
        if times[0] > 1 or any(after >= before for before, after in zip(times, times[1:], strict=False)):
            raise ValueError(f"--student_timesteps must be decreasing and at most 1, got {times}")


@dataclass(kw_only=True)
class DistillationArguments(Arguments):
    _argument_group_name = "distillation"

    method: Literal["dmd", "consistency"] = HfArg(
        default="dmd", help="dmd: distribution matching (arXiv 2405.14867). consistency: a cheaper baseline."
    )
    teacher_guidance_scale: Finite | None = HfArg(
        default=None, help="Guidance scale of the teacher, which the student learns. Defaults to the pipeline's."
    )
    teacher_steps: Count = HfArg(
        default=25,
        help="Steps of the teacher from noise to sound: for each sample of ODE regression, and the length of the single"
        " step that consistency takes.",
    )
    fake_updates: Count = HfArg(default=5, help="dmd: updates of the fake score for each update of the student.")
    fake_learning_rate: Positive | None = HfArg(
        default=None, help="dmd: learning rate of the fake score. Defaults to --learning_rate."
    )
    ode_steps: CountOrZero = HfArg(
        default=0, help="dmd: number of first training steps that use ODE regression. 0 skips it."
    )
    ode_pairs: Count = HfArg(
        default=1024, help="dmd: paths of the teacher for ODE regression. They are kept in the output folder."
    )
    average_decay: Decay = HfArg(
        default=0.95, help="consistency: decay of the student's moving average, which is its target."
    )


@dataclass(kw_only=True)
class DistillArguments(TrainingArguments, StudentArguments, DistillationArguments):
    """Options of `distill_audiox.py`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixed_precision == "fp16":
            raise ValueError("--mixed_precision fp16 does not support distillation, use bf16 or no")
        if self.post_hoc_ema:
            raise ValueError("--post_hoc_ema does not support distillation; leave it out")
        if self.snr_gamma is not None:
            raise ValueError("--snr_gamma does not apply to distillation; leave it out")
