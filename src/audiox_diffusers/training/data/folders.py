"""Folders of sounds, videos and images, with or without a metadata file."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from datasets import load_dataset

from .media_kinds import EXTENSIONS, KINDS, kind_of
from .streaming import Row, Unreadable

METADATA = {"metadata.jsonl": "json", "metadata.csv": "csv", "metadata.parquet": "parquet"}
# Folders with such files are datasets in another format, beside which media may lie.
SHARDS = {".parquet", ".tar", ".arrow", ".zip"}


class MediaFolder:
    """
    A local folder of media files, as a source of rows.

    The columns `file_name` and `*_file_name` of a metadata file are paths relative to it. `file_name` becomes `audio`,
    `video` or `image`, depending on the file, so a folder can mix them. Subfolders can have metadata files of their own.
    Each metadata file is a shard.

    Without metadata, every sound and every video is a row. The text file of the same name beside it, such as `rain.txt`
    beside `rain.wav`, is its `caption`. `folder` is the name of the subfolder that it lies in, with spaces for
    underscores.

    Args:
        folder: The folder.
        files: Its files, and those of its subfolders.
        split: Name of a subfolder to use. `"train"` is the whole folder if there is no such subfolder.

    Raises:
        ValueError: The folder has no such split, or its metadata names no files.
    """

    def __init__(self, folder: Path, files: list[Path], split: str):
        if (folder / split).is_dir() and not any(file.name in METADATA for file in folder.iterdir()):
            folder /= split
            files = [file for file in files if file.is_relative_to(folder)]
        elif split != "train":
            raise ValueError(f"has no subfolder {split}")
        self.metadata = [file for file in files if file.name in METADATA]
        self.media = [file for file in files if KINDS.get(file.suffix.lower()) in ("audio", "video")]
        self.num_shards = len(self.metadata) or 1
        first_rows = (next(self._table(shard, 0), {}) for shard in range(len(self.metadata)))
        names = list(dict.fromkeys(name for row in first_rows for name in row)) if self.metadata else ["file_name"]
        if not any(_is_path(name) for name in names):
            raise ValueError(f"{self.metadata[0].name} needs a column file_name, got {', '.join(names)}")
        kinds = [kind for kind in EXTENSIONS if any(KINDS.get(file.suffix.lower()) == kind for file in files)]
        columns = [column for name in names for column in (kinds if name == "file_name" else [_column(name)])]
        if not self.metadata:
            texts = set(files)
            columns += ["caption"] if any(file.with_suffix(".txt") in texts for file in self.media) else []
            columns += ["folder"] if any(file.parent != folder for file in self.media) else []
        self.folder = folder
        self.columns = list(dict.fromkeys(columns))
        self.num_rows = None if self.metadata else len(self.media)

    @classmethod
    def open(cls, folder: Path, split: str) -> "MediaFolder | None":
        """Open a folder. Return `None` if it holds no media files, or shards of another format."""
        files = _files(folder)
        suffixes = {file.suffix.lower() for file in files if file.name not in METADATA}
        return cls(folder, files, split) if suffixes & set(KINDS) and not suffixes & SHARDS else None

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Yield the rows of one shard, starting at row `start`."""
        if not self.metadata:
            for file in self.media[start:]:
                yield self._row(file)
            return
        for row in self._table(shard, start):
            yield _resolve(row, self.metadata[shard].parent)

    def _row(self, file: Path) -> Row:
        row = {kind_of(file.name): str(file)}
        text = file.with_suffix(".txt")
        if text.is_file():
            row["caption"] = text.read_text(encoding="utf-8", errors="replace").strip()
        if file.parent != self.folder:
            row["folder"] = file.parent.name.replace("_", " ")
        return row

    def _table(self, shard: int, start: int) -> Iterator[dict[str, Any]]:
        file = self.metadata[shard]
        table = load_dataset(METADATA[file.name], data_files=str(file), split="train", streaming=True)
        for batch in table.skip(start).iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}


def _files(folder: Path) -> list[Path]:
    """List all files of a folder and its subfolders in order, without hidden ones."""
    paths = (path for path in folder.rglob("*") if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return sorted(path for path in paths if path.is_file())


def _is_path(name: str) -> bool:
    return name == "file_name" or name.endswith("_file_name")


def _column(name: str) -> str:
    return name.removesuffix("_file_name")


def _resolve(row: dict[str, Any], folder: Path) -> Row:
    """Replace the paths of a row of metadata by columns of media."""
    resolved = {}
    for name, value in row.items():
        if not _is_path(name):
            resolved[name] = value
        elif value is not None:
            path = PurePath(str(value))
            # Metadata from a stranger must not lead to other files of this machine.
            if path.is_absolute() or ".." in path.parts or "://" in str(value):
                return Unreadable(f"`{name}` must be a path inside of the folder, got {value!r}")
            resolved[kind_of(path.name) if name == "file_name" else _column(name)] = str(folder / path)
    return resolved
