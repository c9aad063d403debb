"""Length of a run in steps."""

import math
from typing import Any

from ..data.first_look import FirstLook
from ..data.streaming import Unreadable


def steps_of_epochs(epochs: int, looks: list[FirstLook], own: int, samples: int) -> int:
    """
    Return the number of steps in which a mixture of datasets gives as many samples as its records, `epochs` times.

    Args:
        epochs: Passes over the data.
        looks: First looks at all datasets.
        own: Number of datasets whose records count. The others, of prior preservation, come last.
        samples: Samples of a step, over all processes.

    Raises:
        ValueError: The number of records of a dataset is not known.
    """
    weights = [look.dataset.weight for look in looks]
    records = sum(_count_records(look) for look in looks[:own])
    return math.ceil(epochs * records * sum(weights) / sum(weights[:own]) / samples)


def _count_records(look: FirstLook) -> int:
    """Count the rows of tables that name files. Rows that hold files themselves take too long."""
    if look.total is not None:
        return look.total
    source, count = look.dataset.source, 0
    for shard in range(source.num_shards):
        for row in source.rows(shard):
            if not isinstance(row, Unreadable) and _holds_media(row):
                raise ValueError(
                    f"--num_train_epochs needs the number of records, which is not known for --dataset {source.name}"
                    " without reading all of it; use --max_train_steps"
                )
            count += not isinstance(row, Unreadable)
    return count


def _holds_media(row: dict[str, Any]) -> bool:
    stored = (value.get("bytes") if isinstance(value, dict) else value for value in row.values())
    return any(isinstance(value, bytes) for value in stored)
