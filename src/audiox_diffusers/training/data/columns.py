"""Which columns of a dataset stand for sound, video, image, caption and so on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..arguments import COLUMNS
from .media_kinds import KINDS, kind_of
from .streaming import Row, Unreadable

# Value of a `--*_column` option that switches a column off.
NONE = "none"
# Usual names of captions. Those after the first five are in WebDatasets.
CAPTIONS = ("caption", "text", "captions", "sentence", "label", "txt", "json.caption", "json.text", "json.captions")
USUAL = {
    **{name: (name,) for name in COLUMNS},
    "audio": ("audio", "audio_path"),
    "video": ("video", "video_path"),
    "caption": CAPTIONS,
}
# Columns with paths of sounds or videos, judging by the extension.
PATHS = ("file_name", "path", "file", "filename")
MEDIA = ("audio", "video", "image", "audio_prompt")


class Source(Protocol):
    name: str
    num_shards: int
    num_rows: int | None
    columns: list[str]
    class_names: dict[str, list[str]]

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]: ...

    def folder(self, shard: int) -> Path | None: ...


def find_columns(source: Source, given: Mapping[str, str | None], option: str = "--dataset") -> dict[str, list[str]]:
    """
    Find the columns of a dataset for each of `COLUMNS`. A row takes the first of them that it has.

    Args:
        source: The dataset.
        given: Columns that the user named. `"none"` switches a column off.
        option: Option that named the dataset, for messages.

    Raises:
        ValueError: A named column is missing, or the dataset has neither audio nor video.
    """
    columns = {}
    for name in COLUMNS:
        column = given.get(name)
        if column == NONE:
            continue
        if column is not None:
            if column not in source.columns and column.split(".")[0] not in source.columns:
                raise ValueError(
                    f"--{name}_column {column}: {source.name} has no such column, but {', '.join(source.columns)}"
                )
            columns[name] = [column]
        elif found := _usual(source, name):
            columns[name] = found
    if not {"audio", "video"} & set(columns):
        raise ValueError(
            f"{option} {source.name} has neither a column audio nor a column video, but {', '.join(source.columns)};"
            " name one with --audio_column or --video_column"
        )
    return columns


def _usual(source: Source, name: str) -> list[str]:
    """Find the columns with a usual name."""
    if name == "caption":
        return [column for column in CAPTIONS if column in source.columns][:1]
    found = [column for column in USUAL[name] if column in source.columns]
    if name in ("audio", "video"):
        found += [column for column in PATHS if column in source.columns]
    # The columns of a WebDataset are called after extensions.
    return found + [column for column in source.columns if KINDS.get(f".{column.split('.')[-1]}") == name]


class NamedRows:
    """
    The rows of a dataset, with the names of `COLUMNS`.

    Paths become relative to the working folder, numbers of classes become their names.

    Args:
        source: The dataset.
        found: Its columns, see [`find_columns`].
        start_offset: Seconds to add to the start of each row.
    """

    def __init__(self, source: Source, found: dict[str, list[str]], start_offset: float = 0.0):
        self.source, self.found, self.start_offset = source, found, start_offset
        self.name, self.num_shards = source.name, source.num_shards
        self.columns = [*found, *(["start"] if start_offset and "start" not in found else [])]

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Yield the rows of one shard, starting at row `start`."""
        folder = self.source.folder(shard)
        for row in self.source.rows(shard, start):
            yield row if isinstance(row, Unreadable) else self._named(row, folder)

    def _named(self, row: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        named = {}
        for name, columns in self.found.items():
            values = (self._value(row, column) for column in columns if _fits(row, column, name))
            value = next((value for value in values if value is not None), None)
            named[name] = _located(value, folder) if name in MEDIA and folder is not None else value
        if self.start_offset:
            start = named.get("start")
            named["start"] = self.start_offset + (start if isinstance(start, (int, float)) else 0.0)
        return named

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        if column in row:
            value = row[column]
        else:
            value = row
            for part in column.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        names = self.source.class_names.get(column)
        if names is not None and isinstance(value, int):
            # -1 stands for an unknown class.
            return names[value].replace("_", " ") if 0 <= value < len(names) else None
        return value


def _fits(row: Mapping[str, Any], column: str, name: str) -> bool:
    """Whether a column of paths holds a file of the kind `name`."""
    return column not in PATHS or name not in ("audio", "video") or kind_of(str(row.get(column))) == name


def _located(value: Any, folder: Path) -> Any:
    """Return a medium with its path relative to `folder`, unless the path leads to a file from the working folder."""
    if isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
        return {**value, "path": _located(value["path"], folder)}
    if not isinstance(value, str) or "://" in value:
        return value
    inside = folder / value
    return str(inside) if inside.exists() or not Path(value).exists() else value
