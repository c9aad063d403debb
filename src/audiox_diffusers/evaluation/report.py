"""The outcome of an evaluation, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any


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
        count: Generated clips that it rests on.
        network: Network, and its weights.
        details: What else the figure depends on.
    """

    metric: str
    key: str
    value: float
    error: float | None
    better: str
    count: int
    network: str
    details: dict[str, Any]


@dataclass(frozen=True)
class EvaluationReport:
    """
    The outcome of [`run_evaluation`].

    Attributes:
        settings: What every figure depends on: files, lengths, rates, versions.
        figures: The metrics that ran.
        skipped: Why a metric did not run, by name.
        excluded: Why a file counts in no figure of a network, by network and file.
        warnings: What makes figures mean less than they seem to.
    """

    settings: dict[str, Any]
    figures: list[Figure]
    skipped: dict[str, str]
    excluded: dict[str, dict[str, str]]
    warnings: list[str]

    def to_json(self) -> str:
        """Figures by key, in front, and everything else."""
        values = {figure.key: figure.value for figure in self.figures}
        values |= {
            figure.key.replace("-mean", "-std"): figure.error for figure in self.figures if "-mean" in figure.key
        }
        return json.dumps({**values, **asdict(self)}, indent=2) + "\n"

    def table(self) -> str:
        """Markdown table of the figures, followed by what was skipped and the warnings."""
        header = ("metric", "value", "± s.e.", "better", "clips", "network")
        rows = [
            (
                f"{figure.metric} ({figure.key})",
                f"{figure.value:.4g}",
                "" if figure.error is None else f"{figure.error:.2g}",
                figure.better,
                str(figure.count),
                figure.network.split(" ")[0],
            )
            for figure in self.figures
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows)]
        lines = [header, tuple("-" * width for width in widths), *rows]
        text = "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines
        )
        skipped: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            skipped.setdefault(reason, []).append(name)
        notes = [f"skipped {', '.join(names)}: {reason}" for reason, names in skipped.items()]
        reasons = {reason: None for files in self.excluded.values() for reason in files.values()}
        notes += [f"excluded: {reason}" for reason in list(reasons)[:10]]
        notes += [f"excluded: {len(reasons) - 10} more"] if len(reasons) > 10 else []
        notes += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join((text, *([""] if notes else []), *notes))
