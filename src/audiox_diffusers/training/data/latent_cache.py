"""
A cache of latents and embeddings in Parquet files.

A cache has the shards and rows of its source, bad records included, so a run draws the same with and without a cache.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from safetensors.torch import load, load_file, save, save_file
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from ...atomic import replacing
from ...messages import first_line
from ..arguments import MaskingConfig
from .batches import Sample
from .encoding import Encoded, NullEmbeddings, RecordEncoder
from .loading import load_batches
from .records import BadRecord, Record, RecordReader, bad_records, needs
from .streaming import Row, RowKey, RowSource, Unreadable, read_shard

# Rows of a file: about 60 MB with a released model.
ROWS = 16
DESCRIPTION = "cache.json"
NULL_EMBEDDINGS = "absent.safetensors"
# Tensors in safetensors format, what to draw a task spec from, why the row cannot be used, why parts of it cannot.
SCHEMA = pa.schema(
    [
        ("tensors", pa.binary()),
        ("available", pa.list_(pa.string())),
        ("task", pa.string()),
        ("error", pa.string()),
        ("broken", pa.map_(pa.string(), pa.string())),
    ]
)


def part_path(folder: Path, source: int, shard: int, first_row: int) -> Path:
    """Return the path of the file that starts at row `first_row`."""
    return folder / f"source-{source:03}" / f"shard-{shard:05}-row-{first_row:09}.parquet"


@dataclass
class CacheSource:
    """Rows of a complete cache, for one of its sources."""

    folder: Path
    source: int
    name: str
    num_shards: int

    def rows(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the rows of one shard, starting at row `start`."""
        first = start - start % ROWS
        while (path := part_path(self.folder, self.source, shard, first)).exists():
            yield from pq.read_table(path).to_pylist()[max(0, start - first) :]
            first += ROWS


class CacheReader:
    """Converts rows of a cache to samples, with task specs that `reader` draws."""

    def __init__(self, reader: RecordReader):
        self.reader = reader

    def read(self, key: RowKey, row: Row) -> Sample:
        """Raise `BadRecord` if the row was a bad record, or has no task that can be trained."""
        if isinstance(row, Unreadable):
            raise BadRecord(row.reason)
        if row["error"] is not None:
            raise BadRecord(row["error"])
        task_spec = self.reader.task_spec(key, frozenset(row["available"]), row["task"])
        for name, reason in row["broken"]:
            if name in needs(task_spec):
                raise BadRecord(reason)
        with bad_records():
            return Sample(key, task_spec, Encoded(**load(row["tensors"])))


def read_null_embeddings(folder: Path) -> NullEmbeddings:
    """Return the null embeddings of a cache."""
    return NullEmbeddings(**load_file(folder / NULL_EMBEDDINGS))


def write_cache(
    folder: Path,
    description: dict[str, Any],
    sources: list[RowSource],
    reader: RecordReader,
    encoder: RecordEncoder,
    num_workers: int,
    accelerator: Accelerator,
) -> list[CacheSource]:
    """
    Encode all rows of the sources into a cache. Use a complete cache as it is, and complete an unfinished one.

    Files appear only when they are complete. The processes divide them among themselves.

    Args:
        folder: Folder of the cache.
        description: Everything that determines the contents of the cache, as JSON values.
        sources: Datasets to encode.
        reader, encoder: Decode and encode the rows.
        num_workers: Number of processes that decode.
        accelerator: Accelerator of the run.

    Returns:
        A source of cached rows for each of `sources`.

    Raises:
        ValueError: The folder holds a cache with another description.
    """
    description = {**description, "num_shards": [source.num_shards for source in sources]}
    path = folder / DESCRIPTION
    existing = json.loads(path.read_text()) if path.exists() else None
    if existing is not None:
        _check_description(folder, existing["of"], description)
    if existing is None or not existing["complete"]:
        if accelerator.is_main_process:
            for number in range(len(sources)):
                (folder / f"source-{number:03}").mkdir(parents=True, exist_ok=True)
            _write_description(path, description, complete=False)
            with replacing(folder / NULL_EMBEDDINGS) as temporary:
                save_file(
                    {name: value.cpu().contiguous() for name, value in vars(encoder.null_embeddings()).items()},
                    temporary,
                )
        accelerator.wait_for_everyone()
        _write_parts(folder, sources, reader, encoder, num_workers, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_description(path, description, complete=True)
        accelerator.wait_for_everyone()
    return [CacheSource(folder, number, source.name, source.num_shards) for number, source in enumerate(sources)]


def _check_description(folder: Path, existing: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [
        f"{name} was {existing.get(name)!r} and is {wanted.get(name)!r}"
        for name in {**existing, **wanted}
        if existing.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(
            f"--cache_latents {folder} has a cache of another run ({'; '.join(changed)}); choose another folder."
        )


def _write_description(path: Path, description: dict[str, Any], complete: bool) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"of": description, "complete": complete}, indent=1))


@dataclass
class Part:
    """Decoded rows of one file: records, or why a row cannot be used."""

    path: Path
    rows: list[Record | str]


class Parts(IterableDataset):
    """The missing parts that are assigned to this process and worker."""

    def __init__(self, folder: Path, sources: list[RowSource], reader: RecordReader, process: int, num_processes: int):
        self.folder = folder
        self.sources = sources
        # All tasks, because other runs may use the cache with other tasks than this one.
        self.reader = replace(reader, masking=MaskingConfig())
        self.process, self.num_processes = process, num_processes

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        turn, turns = worker * self.num_processes + self.process, num_workers * self.num_processes
        for number, (source, shard, first, rows) in enumerate(self._parts()):
            path = part_path(self.folder, source, shard, first)
            if number % turns == turn and not path.exists():
                yield Part(
                    path, [self._read(RowKey(source, 0, shard, row), values) for row, values in enumerate(rows, first)]
                )

    def _parts(self) -> Iterator[tuple[int, int, int, list[Row]]]:
        """Yield source, shard, first row and rows of every part."""
        for number, source in enumerate(self.sources):
            for shard in range(source.num_shards):
                rows = read_shard(source, shard)
                for first in count(step=ROWS):
                    part = list(islice(rows, ROWS))
                    if not part:
                        break
                    yield number, shard, first, part

    def _read(self, key: RowKey, row: Row) -> Record | str:
        try:
            return self.reader.read(key, row, everything=True)
        except BadRecord as error:
            return first_line(error)


def _write_parts(
    folder: Path,
    sources: list[RowSource],
    reader: RecordReader,
    encoder: RecordEncoder,
    num_workers: int,
    accelerator: Accelerator,
) -> None:
    parts = Parts(folder, sources, reader, accelerator.process_index, accelerator.num_processes)
    with tqdm(desc="encoding", unit="record", disable=not accelerator.is_local_main_process) as progress:
        for part in load_batches(parts, num_workers):
            rows = []
            for row in part.rows:
                rows.append(_error_row(row) if isinstance(row, str) else _encoded_row(row, encoder))
                progress.update()
            with replacing(part.path) as temporary:
                pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)


def _error_row(reason: str) -> dict[str, Any]:
    return {"tensors": b"", "available": [], "task": None, "error": reason, "broken": {}}


def _encoded_row(record: Record, encoder: RecordEncoder) -> dict[str, Any]:
    # One record at a time keeps the memory that of one window.
    (encoded,) = encoder.encode([record])
    tensors = {name: value.cpu().contiguous() for name, value in encoded.tensors().items()}
    return {
        "tensors": save(tensors),
        "available": sorted(record.available),
        "task": record.task,
        "error": None,
        "broken": record.broken,
    }
