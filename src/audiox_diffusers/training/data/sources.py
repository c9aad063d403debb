"""Datasets as shards of rows, which are streamed: they may be larger than memory and disk."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    Video,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from ...messages import first_line
from ..arguments import DataArguments
from ..dataset_list import DatasetOptions
from .columns import NamedRows, find_columns
from .folders import MediaFolder
from .media_kinds import kind_of
from .streaming import Row, Unreadable
from .tables import Tables
from .tars import TarShards

TABLES = {".csv", ".jsonl"}
BUILDERS = {".parquet": "parquet", ".json": "json"}
# They put all files of a folder into one column, named after the most frequent kind of file.
FOLDER_BUILDERS = {"audiofolder": "audio", "videofolder": "video", "imagefolder": "image"}


class DatasetSource:
    """
    Rows of a dataset, with media files as paths or bytes.

    Args:
        name: A Hub id, a local folder, or a file or glob of Parquet, WebDataset tars, JSON lines or CSV.
        config_name, split, revision, cache_dir: Arguments of `datasets.load_dataset`.
        option: Option that named the dataset, for messages.
        media_dir: Folder of the media of a table, see [`Tables`].

    Attributes:
        num_shards (`int`): Number of parts that can be read independently.
        num_rows (`int | None`): Number of rows, if it is known.
        columns (`list[str]`): Columns of the rows.
        class_names (`dict[str, list[str]]`): Names of the classes in columns that hold numbers of classes.

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
        media_dir: Path | None = None,
    ):
        self.name = name
        options = {"split": split, "revision": revision, "cache_dir": cache_dir}
        try:
            self._source = _open(name, config_name, media_dir, **options)
            first = self._first_row()
        except Exception as error:  # the type depends on the format
            raise ValueError(f"`{option} {name}` cannot be opened: {first_line(error)}") from error
        self.num_shards = self._source.num_shards
        self.num_rows = self._source.num_rows
        if first is None and self.num_shards == 1:
            raise ValueError(f"`{option} {name}` has no rows.")
        columns = self._source.columns or list(first or {})
        nested = [f"json.{name}" for name in first["json"]] if first and isinstance(first.get("json"), dict) else []
        self.columns = [*columns, *nested]
        self.class_names = getattr(self._source, "class_names", {})

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Yield the rows of one shard, starting at row `start`. A damaged shard ends with an `Unreadable`."""
        return self._source.rows(shard, start)

    def _first_row(self) -> dict[str, Any] | None:
        shards = range(min(self._source.num_shards, 4))
        rows = (row for shard in shards for row in self.rows(shard))
        return next((row for row in rows if not isinstance(row, Unreadable)), None)

    def folder(self, shard: int) -> Path | None:
        """Return the folder that paths in the rows of a shard are relative to, if they are relative to one."""
        return self._source.folders[shard] if isinstance(self._source, Tables) else None


def _open(name: str, config_name: str | None, media_dir: Path | None, split: str, **options: str | None):
    files = [Path(file) for file in sorted(glob.glob(name, recursive=True))]
    suffix, path = Path(name).suffix, Path(name)
    if files and suffix == ".tar":
        return TarShards(files)
    if files and suffix in TABLES:
        return Tables(files, split, media_dir)
    if files and suffix in BUILDERS:
        files = [str(file) for file in files]
        streamed = load_dataset(
            BUILDERS[suffix], config_name, data_files={split: files}, split=split, streaming=True, **options
        )
        return _Streamed(streamed, files)
    if path.is_dir() and config_name is None:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _saved(path, split)
        folder = MediaFolder.open(path, split)
        if folder is not None:
            return folder
        if any(path.rglob("*.tar")):
            builder = load_dataset_builder(name)
            if builder.name == "webdataset":
                return TarShards(_of_split(builder.config.data_files, split))
    return _Streamed(load_dataset(name, config_name, split=split, streaming=True, **options))


def _of_split(data_files: dict, split: str) -> list[Path]:
    if split not in data_files:
        raise ValueError(f"has no split {split}, but {', '.join(map(str, data_files))}")
    return [Path(file) for file in data_files[split]]


def _saved(path: Path, split: str) -> "_Streamed":
    """Open what `save_to_disk` wrote."""
    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"has no split {split}, but {', '.join(saved)}")
        saved = saved[split]
    shards = max(1, min(len(saved), len(saved.cache_files)))
    return _Streamed(saved.to_iterable_dataset(num_shards=shards), saved=saved)


class _Streamed:
    """Rows of a dataset of `datasets`."""

    def __init__(self, dataset: IterableDataset, files: list[str] | None = None, saved: Dataset | None = None):
        self._dataset = as_stored(dataset)
        self._files = files
        self._folder = FOLDER_BUILDERS.get(dataset.info.builder_name)
        self.num_shards = self._dataset.num_shards
        self.num_rows = _count(dataset) if saved is None else len(saved)
        self.columns = list(self._dataset.features or {})
        if self._folder is not None:
            self.columns = list(dict.fromkeys([*self.columns, "audio", "video"]))
        self.class_names = {
            name: feature.names
            for name, feature in (dataset.features or {}).items()
            if isinstance(feature, ClassLabel)
        }

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        dataset = self._dataset.shard(self.num_shards, shard).skip(start)
        try:
            # Not `iter(dataset)`, which in a worker of a data loader would divide the shard among the workers.
            for batch in dataset.iter(batch_size=1):
                row = {name: values[0] for name, values in batch.items()}
                if self._folder is not None and row.get(self._folder) is not None:
                    media = row.pop(self._folder)
                    # The path of a file in an archive is zip://clip.mp4::archive.zip.
                    row[kind_of(media["path"].split("::")[0])] = media
                yield row
        except Exception as error:  # the type depends on the format
            known = self._files is not None and len(self._files) == self.num_shards
            name = self._files[shard] if known else f"shard {shard}"
            yield Unreadable(f"{name}: the rest of this shard cannot be read ({first_line(error)})")


def _count(dataset: IterableDataset) -> int | None:
    """Return the number of rows that the dataset's card states."""
    split = (dataset.info.splits or {}).get(str(dataset.split))
    return split.num_examples or None if split is not None else None


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
    """A dataset, the names of its columns for `COLUMNS`, its weight in the mixture, and what it was opened with."""

    source: NamedRows
    columns: dict[str, str]
    weight: float
    options: DatasetOptions


def open_datasets(args: DataArguments) -> list[MixedDataset]:
    """
    Open the datasets of `--dataset`.

    Raises:
        ValueError: See [`DatasetSource`] and [`find_columns`].
    """
    return [open_dataset(options, args.cache_dir) for options in args.datasets()]


def open_dataset(options: DatasetOptions, cache_dir: str | None, option: str = "--dataset") -> MixedDataset:
    """Open one dataset, with the columns that its options name or else the usual ones."""
    media_dir = None if options.media_dir is None else Path(options.media_dir)
    source = DatasetSource(
        options.path, options.config_name, options.split, options.revision, cache_dir, option, media_dir
    )
    rows = NamedRows(source, find_columns(source, options.columns, option), options.start_offset)
    return MixedDataset(rows, {name: name for name in rows.columns}, options.weight, options)
