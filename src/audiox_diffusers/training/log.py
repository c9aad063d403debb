"""What is reported of a run, in lines of JSON: each step, and each record that cannot be used."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..media.files import replacing

LOG = "log.jsonl"
SKIPPED = "skipped.jsonl"


def write_report(output_dir: Path, step: int, report: Mapping[str, float]) -> None:
    """Add a line to the log of a run."""
    with (output_dir / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **report}) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Leave out what is not of the steps that a run has taken: it takes them again, or another run took them."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _is_of(line, step)]
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _is_of(line: str, step: int) -> bool:
    # The last one is cut off where the disk was full or the run was killed; its step is taken again.
    # What names no step, such as a row that a VAE was not trained on, is of another run.
    return line.endswith("\n") and json.loads(line).get("step", math.inf) <= step
