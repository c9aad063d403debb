"""Scores and their chance levels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """
    A score and the score by chance.

    Attributes:
        value: The score.
        chance: The score of answers compared with other items; `None` where that has no meaning.
        count: Number of items.
    """

    value: float
    chance: float | None
    count: int


def accuracy(answers: Sequence[Any], truths: Sequence[Any]) -> Score:
    """Return the share of answers that equal their truth; by chance, a random item's truth."""
    pairs = [answer == truth for answer in answers for truth in truths]
    right = [answer == truth for answer, truth in zip(answers, truths)]
    return Score(mean(right), mean(pairs), len(right))


def compare_with_others(
    metric: Callable[[list[tuple[Any, Any]]], float], answers: Sequence[Any], truths: Sequence[Any]
) -> Score:
    """Return a metric of pairs of answer and truth; by chance, of each answer with the truths of all other items."""
    others = [(answer, truth) for i, answer in enumerate(answers) for j, truth in enumerate(truths) if i != j]
    return Score(metric(list(zip(answers, truths))), metric(others) if others else None, len(answers))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
