"""The options of one dataset in a mixture."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class DatasetOptions:
    """
    A dataset, and how to use it.

    Args:
        path: A Hub id, a local folder, or a file or glob.
        config_name, split, revision: Arguments of `datasets.load_dataset`.
        media_dir: Folder of the media of a table.
        columns: Names of its columns, by the names of `COLUMNS`. `"none"` switches a column off.
        weight: How often to draw from it, relative to the other datasets.
        tasks: Weights of the tasks, `None` for those of the run.
        start_offset: Seconds to add to the start of each record.
    """

    path: str
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    media_dir: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    tasks: dict[str, float] | None = None
    start_offset: float = 0.0
