"""Datasets as shards of rows, which are streamed: they may be larger than memory and disk."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import Audio, Image, IterableDataset, Video, load_dataset

from ...messages import first_line
from ..arguments import COLUMNS, DataArguments
from .folders import MediaFolder, kind_of
from .streaming import Row

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "json", ".json": "json", ".csv": "csv"}
# They put all files of a folder into one column, named after the most frequent kind of file.
FOLDER_BUILDERS = {"audiofolder": "audio", "videofolder": "video", "imagefolder": "image"}


class DatasetSource:
    """
    Rows of a dataset, with media files as paths or bytes.

    Args:
        name: A Hub id, a local folder, or a file or glob of Parquet, WebDataset tars, JSON lines or CSV.
        config_name, split, revision, cache_dir: Arguments of `datasets.load_dataset`.
        option: Option that named the dataset, for messages.

    Attributes:
        num_shards (`int`): Number of parts that can be read independently.
        columns (`list[str]`): Columns of the rows.

    Raises:
        ValueError: There is no such dataset or split, or it has no rows.
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
                self._source = _Streamed(load_dataset(builder, config_name, data_files={split: files}, **options))
            else:
                folder = MediaFolder.open(Path(name), split) if config_name is None and Path(name).is_dir() else None
                self._source = folder or _Streamed(load_dataset(name, config_name, **options))
            first = next(self.rows(0), None)
        except Exception as error:  # the type depends on the format
            raise ValueError(f"`{option} {name}` cannot be opened: {first_line(error)}") from error
        self.num_shards = self._source.num_shards
        if first is None and self.num_shards == 1:
            raise ValueError(f"`{option} {name}` has no rows.")
        self.columns = self._source.columns or list(first or {})

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Yield the rows of one shard, starting at row `start`."""
        return self._source.rows(shard, start)


class _Streamed:
    """Rows of a dataset of `datasets`."""

    def __init__(self, dataset: IterableDataset):
        self._dataset = as_stored(dataset)
        self._folder = FOLDER_BUILDERS.get(dataset.info.builder_name)
        self.num_shards = self._dataset.num_shards
        self.columns = list(self._dataset.features or {})
        if self._folder is not None:
            self.columns = list(dict.fromkeys([*self.columns, "audio", "video"]))

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        dataset = self._dataset.shard(self.num_shards, shard).skip(start)
        # Not `iter(dataset)`, which in a worker of a data loader would divide the shard among the workers.
        for batch in dataset.iter(batch_size=1):
            row = {name: values[0] for name, values in batch.items()}
            if self._folder is not None and row.get(self._folder) is not None:
                media = row.pop(self._folder)
                # The path of a file in an archive is zip://clip.mp4::archive.zip.
                row[kind_of(media["path"].split("::")[0])] = media
            yield row


def as_stored(dataset: IterableDataset) -> IterableDataset:
    """Return the dataset with media undecoded: decoding audio and video needs torchcodec and FFmpeg's libraries."""
    if dataset.features is None:
        return dataset
    dataset = dataset.decode(False)
    # Of the media types in `datasets`, only Video takes a path or bytes without torchcodec. All are stored alike.
    stored = {
        name: Video(decode=False) if isinstance(feature, (Audio, Image)) else feature
        for name, feature in dataset.features.items()
    }
    return dataset.cast(type(dataset.features)(stored))


class MixedDataset(NamedTuple):
    """A dataset, the names of its columns for `COLUMNS`, and its weight in the mixture."""

    source: DatasetSource
    columns: dict[str, str]
    weight: float


def open_datasets(args: DataArguments) -> list[MixedDataset]:
    """
    Open the datasets of `--dataset`.

    Raises:
        ValueError: See [`DatasetSource`] and [`find_columns`].
    """
    sources = [
        DatasetSource(name, args.dataset_config_name, args.dataset_split, args.dataset_revision, args.cache_dir)
        for name in args.dataset
    ]
    columns = find_columns(args, sources)
    weights = args.dataset_weights or [1.0] * len(sources)
    return [MixedDataset(source, columns, weight) for source, weight in zip(sources, weights, strict=True)]


def find_columns(args: DataArguments, sources: list[DatasetSource], option: str = "--dataset") -> dict[str, str]:
    """
    Return the datasets' name for each of `COLUMNS` that at least one of them has.

    Args:
        args: Options that may name columns.
        sources: The datasets.
        option: Option that named the datasets, for messages.

    Raises:
        ValueError: A column that an option names is missing, or a dataset has neither audio nor video.
    """
    columns = {}
    for name in COLUMNS:
        given = getattr(args, f"{name}_column")
        column = given or name
        lacking = [source for source in sources if column.split(".")[0] not in source.columns]
        if given and lacking:
            raise ValueError(
                f"--{name}_column {given}: {lacking[0].name} has no such column, but {', '.join(lacking[0].columns)}"
            )
        if len(lacking) < len(sources):
            columns[name] = column
    for source in sources:
        if not {columns.get("audio"), columns.get("video")} & set(column.split(".")[0] for column in source.columns):
            raise ValueError(
                f"{option} {source.name} has neither a column audio nor a column video, but"
                f" {', '.join(source.columns)}; name one with --audio_column or --video_column"
            )
    return columns
