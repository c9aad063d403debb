"""Position of a process in its data, as a JSON file of a checkpoint."""

from dataclasses import asdict
from itertools import chain
from pathlib import Path

from ..data.loading import RecordBatches
from ..data.streaming import Position
from .state_files import check_count, check_like, read_json, reading, write_json

DATA = "data-{}.json"


def write_position(path: Path, records: RecordBatches, skipped: int) -> None:
    """Write the position of `records` and the number of records that were skipped."""
    write_json(path, {"batches": records.batches, "skipped": skipped, "streams": records.states})


def read_position(path: Path, records: RecordBatches) -> int:
    """
    Set the position of `records`. Returns the number of records that were skipped before it.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    data = read_json(path)
    with reading(path):
        check_like({**data, "streams": {}}, {"batches": 0, "skipped": 0, "streams": {}}, "data")
        streams = {int(stream): position for stream, position in data["streams"].items()}
        like = {"count": 0, "positions": [asdict(Position()) for _ in records.sources]}
        for stream, position in streams.items():
            check_like(position, like, f"streams/{stream}")
            for name, value in chain(position.items(), *(item.items() for item in position["positions"])):
                if name != "positions":
                    check_count(value, f"streams/{stream}/{name}")
        records.batches = check_count(data["batches"], "batches")
        records.states = streams
        return check_count(data["skipped"], "skipped")
