"""Results of an evaluation, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..tables import markdown_table

# Network of the lengths and levels of files, which can be read of every file that any network can use.
FACTS = "facts"
# Files that were left out, in the table.
MOST_EXCLUSIONS = 10


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
        input: What the network sees of a clip.
        details: Further settings of the metric, such as the way its error was estimated.
    """

    metric: str
    key: str
    value: float
    error: float | None
    better: str
    count: int
    network: str
    licence: str
    input: dict[str, Any]
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
        saved: Number of embeddings in the file of statistics that was written, by network.
    """

    settings: dict[str, Any]
    figures: list[Figure]
    skipped: dict[str, str]
    excluded: dict[str, dict[str, str]]
    warnings: list[str]
    saved: dict[str, int] = field(default_factory=dict)

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
        lines = [markdown_table(header, rows), ""] if rows else []
        skipped: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            skipped.setdefault(reason, []).append(name)
        notes = [f"skipped {', '.join(names)}: {reason}" for reason, names in skipped.items()]
        notes += self._exclusions()
        notes += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, *notes]).rstrip("\n")

    def _exclusions(self) -> list[str]:
        """Return a line for each file that was left out, with the networks if others could use it."""
        networks: dict[str, list[str]] = {}
        for network, files in self.excluded.items():
            for reason in files.values():
                networks.setdefault(reason, []).append(network)
        lines = []
        for reason, names in networks.items():
            everywhere = FACTS in names
            lines.append(f"left out{'' if everywhere else ' of ' + ', '.join(sorted(names))}: {reason}")
        more = len(lines) - MOST_EXCLUSIONS
        return [*lines[:MOST_EXCLUSIONS], *([f"left out: {more} more, see --output"] if more > 0 else [])]
