"""Results as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

from ..tables import markdown_table
from .scores import Score, mean


@dataclass(frozen=True)
class Figure:
    """
    A score over several seeds.

    Attributes:
        mean: Mean over the seeds.
        spread: Standard deviation over the seeds; `None` for one seed.
        values: Score of each seed.
        chance: Mean score by chance; `None` where that has no meaning.
        count: Number of items.
        rendered, decoded: Score of the scenes' true sounds, unchanged and after the VAE: the upper limits for a model.
            `None` if not measured.
    """

    mean: float
    spread: float | None
    values: tuple[float, ...]
    chance: float | None
    count: int
    rendered: float | None = None
    decoded: float | None = None

    @classmethod
    def of(cls, scores: Sequence[Score], rendered: Score | None = None, decoded: Score | None = None) -> "Figure":
        """Summarize the scores of each seed, of the true sounds, and of the true sounds after the VAE."""
        values = tuple(score.value for score in scores)
        chances = [score.chance for score in scores if score.chance is not None]
        return cls(
            mean=mean(values),
            spread=stdev(values) if len(values) > 1 else None,
            values=values,
            chance=mean(chances) if chances else None,
            count=scores[0].count,
            rendered=rendered and rendered.value,
            decoded=decoded and decoded.value,
        )


@dataclass(frozen=True)
class Report:
    """
    Results of [`run_bench`].

    Attributes:
        settings: Options of the run and properties of the model.
        detectors: Accuracy of the metrics themselves on unchanged and on degraded true sounds.
        tasks: Scores of each task by name.
        seconds_per_clip: Mean time to generate a sound; 0 if none was generated.
    """

    settings: dict[str, Any]
    detectors: dict[str, dict[str, float]]
    tasks: dict[str, dict[str, Figure]]
    seconds_per_clip: float

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def table(self) -> str:
        """Return the report as Markdown tables."""
        rows = [
            [
                task,
                name,
                show(figure.mean),
                show(figure.spread),
                show(figure.chance),
                show(figure.rendered),
                show(figure.decoded),
                str(figure.count),
            ]
            for task, figures in self.tasks.items()
            for name, figure in figures.items()
        ]
        header = ["task", "measure", "model", "spread", "chance", "true sounds", "through the VAE", "items"]
        text = markdown_table(header, rows)
        if self.detectors:
            names = list(next(iter(self.detectors.values())))
            rows = [[kind, *(show(scores[name]) for name in names)] for kind, scores in self.detectors.items()]
            text += "\n\n" + markdown_table(["accuracy of the metrics", *names], rows)
        if self.seconds_per_clip:
            text += f"\n\n{self.seconds_per_clip:.2f} s a clip"
        return text


@dataclass(frozen=True)
class SweepReport:
    """
    Results of [`run_sweep`].

    Attributes:
        settings: Options of the run.
        rows: `guidance_scale`, `num_inference_steps`, `eta`, `seconds_per_clip`, `scores` by name and their `mean` for
            each combination of options.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def table(self) -> str:
        """Return the report as Markdown tables."""
        names = list(self.rows[0]["scores"])
        rows = [
            [
                f"{row['guidance_scale']:g}",
                str(row["num_inference_steps"]),
                "-" if row["eta"] is None else f"{row['eta']:g}",
                *(show(row["scores"][name]) for name in names),
                show(row["mean"]),
                f"{row['seconds_per_clip']:.2f}",
            ]
            for row in self.rows
        ]
        return markdown_table(["guidance", "steps", "eta", *names, "mean", "s a clip"], rows)


def show(value: float | None) -> str:
    """Format with three decimals; empty for `None`."""
    return "" if value is None else f"{value:.3f}"
