"""Where training data comes from: datasets as shards of rows, read one after the other and never all at once."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Audio, Image, IterableDataset, Video, load_dataset

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "json", ".json": "json", ".csv": "csv"}


class DatasetSource:
    """
    Rows of a dataset that `datasets` streams, with media as they are stored: `{"path": ..., "bytes": ...}`.

    Args:
        name: a Hub id, a local folder, or a file or glob of Parquet, WebDataset tars, JSON lines or CSV.
        config_name, split, revision, cache_dir: as of `datasets.load_dataset`.
        option: that named it.

    Attributes:
        num_shards (`int`): parts that can be read apart.
        columns (`list[str]`): names of what a row holds.

    Raises:
        ValueError: there is no such dataset or split, or it has no rows.
    """

    def __init__(
        self,
        name: str,
        config_name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        cache_dir: str | None = None,
        option: str = "--dataset",
    ):
        self.name = name
        options = {"split": split, "revision": revision, "cache_dir": cache_dir, "streaming": True}
        files = sorted(glob.glob(name, recursive=True))
        builder = BUILDERS.get(Path(name).suffix)
        try:
            if builder is not None and files:
                dataset = load_dataset(builder, config_name, data_files={split: files}, **options)
            else:
                dataset = load_dataset(name, config_name, **options)
            self._dataset = as_stored(dataset)
            first = next(self.rows(0), None)
        except Exception as error:  # what is raised depends on the format
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"`{option} {name}` cannot be opened: {reason}") from error
        if first is None and self.num_shards == 1:
            raise ValueError(f"`{option} {name}` has no rows.")
        self.columns = list(self._dataset.features or first or {})

    @property
    def num_shards(self) -> int:
        return self._dataset.num_shards

    def rows(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of one shard, from row `start` on."""
        dataset = self._dataset.shard(self.num_shards, shard).skip(start)
        # Not `iter(dataset)`: in a worker of a data loader that would split the one shard among the workers.
        for batch in dataset.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}


def as_stored(dataset: IterableDataset) -> IterableDataset:
    """The dataset with nothing decoded: audio and video would need torchcodec, which needs an FFmpeg of the system."""
    if dataset.features is None:
        return dataset
    dataset = dataset.decode(False)
    # Of the media types that `datasets` knows, Video is the one that takes a path or bytes without torchcodec. All are
    # stored in the same way.
    stored = {
        name: Video(decode=False) if isinstance(feature, (Audio, Image)) else feature
        for name, feature in dataset.features.items()
    }
    return dataset.cast(type(dataset.features)(stored))
