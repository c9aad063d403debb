"""The log files of a run, as JSON lines: training steps and skipped records."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging

from ...atomic import replacing
from ...messages import first_line

logger = logging.get_logger(__name__)

LOG = "log.jsonl"
SKIPPED = "skipped.jsonl"


@contextmanager
def warned(what: str) -> Iterator[None]:
    """Warn of an error inside. A tracker or an upload that fails must not end a run."""
    try:
        yield
    except Exception as error:  # of any library
        logger.warning(f"{what}: {first_line(error)}")


def write_report(output_dir: Path, step: int, report: Mapping[str, float]) -> None:
    """Append the report of a step to the log."""
    with (output_dir / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **report}) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Remove the lines after `step`, which the run will write again, and those of other runs."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _belongs(line, step)]
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _belongs(line: str, step: int) -> bool:
    # A full disk or a kill can cut off the last line. Lines without a step belong to another run.
    return line.endswith("\n") and json.loads(line).get("step", math.inf) <= step
