"""Settings of a distillation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DistillationSettings:
    """
    Args:
        timesteps: The student's times, decreasing.
        seed: Seed of all draws.
        accumulation_steps: Batches for each update, of the student and of the fake score.
        companion_updates: Updates of the fake score for each of the student.
        companion_learning_rate: Learning rate of the fake score.
        adam_betas, adam_epsilon, adam_weight_decay, max_grad_norm: Optimizer of the fake score.
        ode_steps: Steps of ODE regression before distribution matching.
        teacher_steps: Steps of the teacher for such a sample, and parts of 0..1 that a consistency step skips.
        average_decay: Decay of the student's moving average in consistency distillation.
    """

    timesteps: tuple[float, ...]
    seed: int
    accumulation_steps: int
    companion_updates: int
    companion_learning_rate: float
    adam_betas: tuple[float, float]
    adam_epsilon: float
    adam_weight_decay: float
    max_grad_norm: float
    ode_steps: int
    teacher_steps: int
    average_decay: float
