"""What is reported of a run, in lines of JSON: each step, and each record that cannot be used."""

import json
from collections.abc import Mapping
from pathlib import Path

LOG = "log.jsonl"
SKIPPED = "skipped.jsonl"


def write_report(output_dir: Path, step: int, report: Mapping[str, float]) -> None:
    """Add a line to the log of a run."""
    with (output_dir / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **report}) + "\n")


def cut_log(output_dir: Path, step: int) -> None:
    """Leave out the steps after `step`, which are taken again."""
    path = output_dir / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
