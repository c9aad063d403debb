"""
Losses of few-step distillation. They know the path from data to noise and functions that predict velocities, but no
networks.

A `Predict` takes noised latents `[B, ...]` and timesteps `[B]` and returns velocities `[B, ...]`. `x0` stands for clean
latents.
"""

from collections.abc import Callable, Sequence

import torch

from ..objective import RectifiedFlowObjective, VelocityObjective, diffusion_loss

Objective = VelocityObjective | RectifiedFlowObjective
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

EPSILON = 1e-6


def predict_clean(
    objective: Objective, predict: Predict, noised: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Return the model's estimate of `x0`, `[B, ...]`, float32."""
    return objective.split(predict(noised, timestep).float(), noised, timestep)[0]


@torch.no_grad()
def roll_out(
    objective: Objective, student: Predict, timesteps: Sequence[float], noises: Sequence[torch.Tensor]
) -> torch.Tensor:
    """
    Sample with the student up to the input of its last given step: denoise, then add new noise of the next level.

    Args:
        objective: Path from data to noise.
        student: Predicts the student's velocity.
        timesteps: Times of the steps, decreasing.
        noises: Unit noise `[B, ...]` of each step.

    Returns:
        Noised latents at the last of `timesteps`, `[B, ...]`.
    """
    times = [noises[0].new_tensor(time).expand(len(noises[0])) for time in timesteps]
    noised = objective.add_noise(torch.zeros_like(noises[0]), noises[0], times[0])
    for time, next_time, noise in zip(times, times[1:], noises[1:], strict=False):
        clean = predict_clean(objective, student, noised, time)
        noised = objective.add_noise(clean, noise, next_time)
    return noised


def distribution_matching_loss(
    objective: Objective,
    sample: torch.Tensor,
    teacher: Predict,
    fake: Predict,
    timestep: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Return a loss whose gradient moves the student's samples towards the teacher's distribution (DMD2, arXiv 2405.14867,
    equation 2; normaliser of arXiv 2311.18828, equation 8).

    With `g = (D_fake - D_teacher) / mean |x0 - D_teacher|` at the noised sample, the gradient in the sample is `g` over
    the number of its values. The value of the loss has no meaning.

    Args:
        objective: Path from data to noise.
        sample: The student's `x0`, `[B, ...]`, float32, with gradient.
        teacher, fake: Predict the guided velocity of the teacher, and that of the student's samples.
        timestep: Times `[B]` at which to compare them.
        noise: Unit noise, `[B, ...]`.

    Returns:
        The loss of each sample, `[B]`, and the means of `|g|` and of the normaliser.
    """
    with torch.no_grad():
        noised = objective.add_noise(sample, noise, timestep)
        real = predict_clean(objective, teacher, noised, timestep)
        gradient = predict_clean(objective, fake, noised, timestep) - real
        error = (sample - real).abs().flatten(1).mean(1)
        gradient = gradient / (error.view(-1, *(1,) * (sample.ndim - 1)) + EPSILON)
    loss = 0.5 * diffusion_loss(sample, sample.detach() - gradient)
    return loss, {"gradient": gradient.abs().mean(), "teacher_error": error.mean()}


def fake_score_loss(
    objective: Objective, sample: torch.Tensor, fake: Predict, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return the diffusion loss of the fake score on the student's samples, `[B]`."""
    sample = sample.detach()
    prediction = fake(objective.add_noise(sample, noise, timestep), timestep)
    return diffusion_loss(prediction, objective.target(sample, noise, timestep))


@torch.no_grad()
def teacher_path(
    objective: Objective, teacher: Predict, timesteps: Sequence[float], noise: torch.Tensor, steps: int
) -> torch.Tensor:
    """
    Sample with the teacher by deterministic first-order steps (DDIM, arXiv 2010.02502), from `timesteps[0]` to 0.

    Args:
        objective: Path from data to noise.
        teacher: Predicts the teacher's guided velocity.
        timesteps: The student's times, decreasing.
        noise: Unit noise, `[B, ...]`.
        steps: Number of steps in total, divided evenly between the times.

    Returns:
        The noised latents at each of `timesteps` and the clean ones, `[len(timesteps) + 1, B, ...]`.
    """
    noised = objective.add_noise(torch.zeros_like(noise), noise, noise.new_full((len(noise),), timesteps[0]))
    path = [noised]
    for index, start in enumerate(timesteps):
        end = timesteps[index + 1] if index + 1 < len(timesteps) else 0.0
        count = max(1, round(steps * (index + 1) / len(timesteps)) - round(steps * index / len(timesteps)))
        times = torch.linspace(start, end, count + 1, dtype=torch.float64).tolist()
        for time, next_time in zip(times, times[1:], strict=False):
            time, next_time = (noise.new_full((len(noise),), value) for value in (time, next_time))
            clean, implied = objective.split(teacher(noised, time).float(), noised, time)
            noised = objective.add_noise(clean, implied, next_time)
        path.append(noised)
    return torch.stack(path)


def ode_regression_loss(
    objective: Objective, student: Predict, path: torch.Tensor, timesteps: Sequence[float]
) -> torch.Tensor:
    """
    Return the squared error of the student's `x0` at all its times against the end of a [`teacher_path`], `[B]`
    (DMD2, arXiv 2405.14867, section 4.5).
    """
    clean, losses = path[-1], []
    for noised, time in zip(path[:-1], timesteps, strict=True):
        estimate = predict_clean(objective, student, noised, noised.new_full((len(noised),), time))
        losses.append(diffusion_loss(estimate, clean))
    return torch.stack(losses).mean(0)


def consistency_loss(
    objective: Objective,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timestep: torch.Tensor,
    next_timestep: torch.Tensor,
    student: Predict,
    target: Predict,
    teacher: Predict,
) -> torch.Tensor:
    """
    Return the consistency distillation loss (arXiv 2303.01469, algorithm 2; guided as in arXiv 2310.04378): the
    student's `x0` at `timestep` must equal that of its moving average one step of the teacher further. Pseudo-Huber
    distance of arXiv 2310.14189.

    Args:
        objective: Path from data to noise.
        latents, noise: Clean latents and unit noise, `[B, ...]`.
        timestep, next_timestep: Times `[B]` before and after the teacher's step. At time 0 the target is the teacher's
            own result.
        student, target, teacher: Predict the velocities of the student, its moving average and the guided teacher.

    Returns:
        The loss of each sample, `[B]`.
    """
    noised = objective.add_noise(latents, noise, timestep)
    estimate = predict_clean(objective, student, noised, timestep)
    with torch.no_grad():
        clean, implied = objective.split(teacher(noised, timestep).float(), noised, timestep)
        nearer = objective.add_noise(clean, implied, next_timestep)
        # At time 0 both paths give back their input, so no boundary condition is needed.
        expected = predict_clean(objective, target, nearer, next_timestep)
    size = estimate[0].numel()
    scale = 0.00054 * size**0.5
    return (((estimate - expected).pow(2).flatten(1).sum(1) + scale**2).sqrt() - scale) / size**0.5
