"""How well answers agree with what is true, beside what that would be by chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """
    A figure and what it is to be held against.

    Attributes:
        value: the figure.
        chance: the same with the answers of other items; `None` where that has no meaning.
        count: of items.
    """

    value: float
    chance: float | None
    count: int


def share_right(answers: Sequence[Any], truths: Sequence[Any]) -> Score:
    """The share of answers that are the truth; by chance, where each answer is held against a random item's truth."""
    pairs = [answer == truth for answer in answers for truth in truths]
    right = [answer == truth for answer, truth in zip(answers, truths)]
    return Score(mean(right), mean(pairs), len(right))


def against_others(
    measure: Callable[[list[tuple[Any, Any]]], float], answers: Sequence[Any], truths: Sequence[Any]
) -> Score:
    """
    A measure of pairs of an answer and a truth; by chance, with each answer beside the truths of all other items.
    `None` of one item.
    """
    others = [(answer, truth) for i, answer in enumerate(answers) for j, truth in enumerate(truths) if i != j]
    return Score(measure(list(zip(answers, truths))), measure(others) if others else None, len(answers))


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)
