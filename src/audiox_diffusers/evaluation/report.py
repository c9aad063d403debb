"""Results of an evaluation, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..tables import markdown_table


@dataclass(frozen=True)
class Figure:
    """
    One metric.

    Attributes:
        metric: Name in the catalog.
        key: Name in other toolkits.
        value: The figure.
        error: Standard error (inception score: deviation over the splits); `None` if unknown.
        better: `"lower"` or `"higher"`.
        count: Number of generated clips.
        network: Network, and its weights.
        licence: Licence of the weights.
        details: Further settings of the metric.
    """

    metric: str
    key: str
    value: float
    error: float | None
    better: str
    count: int
    network: str
    licence: str
    details: dict[str, Any]


@dataclass(frozen=True)
class EvaluationReport:
    """
    Results of [`run_evaluation`].

    Attributes:
        settings: Settings that every figure depends on: files, lengths, rates, versions.
        figures: Metrics that ran.
        skipped: Reasons why metrics did not run, by name.
        excluded: Reasons why files were left out, by network and file.
        warnings: Reasons to trust figures less.
    """

    settings: dict[str, Any]
    figures: list[Figure]
    skipped: dict[str, str]
    excluded: dict[str, dict[str, str]]
    warnings: list[str]

    def to_json(self) -> str:
        """Return JSON with the figures by key first."""
        values = {figure.key: figure.value for figure in self.figures}
        values |= {
            figure.key.replace("-mean", "-std"): figure.error for figure in self.figures if "-mean" in figure.key
        }
        return json.dumps({**values, **asdict(self)}, indent=2) + "\n"

    def table(self) -> str:
        """Return a Markdown table of the figures, followed by skipped metrics, excluded files and warnings."""
        header = ("metric", "value", "± s.e.", "better", "clips", "network", "licence")
        rows = [
            (
                f"{figure.metric} ({figure.key})",
                f"{figure.value:.4g}",
                "" if figure.error is None else f"{figure.error:.2g}",
                figure.better,
                str(figure.count),
                figure.network.split(" ")[0],
                figure.licence,
            )
            for figure in self.figures
        ]
        text = markdown_table(header, rows)
        skipped: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            skipped.setdefault(reason, []).append(name)
        notes = [f"skipped {', '.join(names)}: {reason}" for reason, names in skipped.items()]
        reasons = {reason: None for files in self.excluded.values() for reason in files.values()}
        notes += [f"excluded: {reason}" for reason in list(reasons)[:10]]
        notes += [f"excluded: {len(reasons) - 10} more"] if len(reasons) > 10 else []
        notes += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join((text, *([""] if notes else []), *notes))
