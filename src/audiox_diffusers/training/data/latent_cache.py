"""
Latents and embeddings, computed once and written as Parquet files.

A cache keeps the shards and the rows of its source, those that cannot be used with the reason: so what is drawn for a
row, and the order in which rows come, is the same with the cache and without it.
"""

import json
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from safetensors.torch import load, load_file, save, save_file
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from ...media.files import replacing
from .batches import Sample
from .encoding import Encoded, NullEmbeddings, RecordEncoder
from .loading import start_workers
from .masking import MaskingConfig
from .records import BadRecord, Record, RecordReader, needs
from .streaming import BrokenShard, RowKey, RowSource, read_shard

# Rows of one file: about 60 MB at full size.
ROWS = 16
DESCRIPTION = "cache.json"
NULL_EMBEDDINGS = "absent.safetensors"
# Of a row: its tensors as safetensors, what a task spec is drawn from, why it cannot be used, or why parts of it cannot.
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
    """The file of the rows from `first_row` on."""
    return folder / f"source-{source:03}" / f"shard-{shard:05}-row-{first_row:09}.parquet"


class CacheSource:
    """Rows of a complete cache, for one of its sources."""

    def __init__(self, folder: Path, source: int, name: str, num_shards: int):
        self.folder = folder
        self.source = source
        self.name = name
        self.num_shards = num_shards

    def rows(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of one shard, from row `start` on."""
        first = start - start % ROWS
        while (path := part_path(self.folder, self.source, shard, first)).exists():
            yield from pq.read_table(path).to_pylist()[max(0, start - first) :]
            first += ROWS


class CacheReader:
    """Samples from rows of a cache, with task specs that `reader` draws."""

    def __init__(self, reader: RecordReader):
        self.reader = reader

    def read(self, key: RowKey, row: dict[str, Any] | BrokenShard) -> Sample:
        """`BadRecord` if the row could not be encoded, or cannot be used."""
        if isinstance(row, BrokenShard):
            raise BadRecord(row.reason)
        if row["error"] is not None:
            raise BadRecord(row["error"])
        task_spec = self.reader.task_spec(key, frozenset(row["available"]), row["task"])
        for name, reason in row["broken"]:
            if name in needs(task_spec):
                raise BadRecord(reason)
        return Sample(key, task_spec, Encoded(**load(row["tensors"])))


def read_null_embeddings(folder: Path) -> NullEmbeddings:
    """The embeddings of absent modalities that belong to a cache."""
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
    Encode all rows of the sources, unless a complete cache of the same `description` is there; go on with one that is
    not complete. Files appear whole, and are divided among the processes.

    Args:
        folder: where to.
        description: all that decides what is in the cache, as JSON holds it.
        sources, reader, encoder: what is encoded, and how.
        num_workers: processes that decode.
        accelerator: of the run.

    Returns:
        The sources that stand for those given.

    Raises:
        ValueError: the folder holds another cache.
    """
    description = {**description, "num_shards": [source.num_shards for source in sources]}
    path = folder / DESCRIPTION
    there = json.loads(path.read_text()) if path.exists() else None
    if there is not None:
        _check_description(folder, there["of"], description)
    if there is None or not there["complete"]:
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


def _check_description(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [
        f"{name} was {there.get(name)!r} and is {wanted.get(name)!r}"
        for name in {**there, **wanted}
        if there.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(
            f"--cache_latents {folder} was made for something else ({'; '.join(changed)}); name another folder."
        )


def _write_description(path: Path, description: dict[str, Any], complete: bool) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"of": description, "complete": complete}, indent=1))


@dataclass
class Part:
    """Decoded rows of one file: records, or why there is none."""

    path: Path
    rows: list[Record | str]


class Parts(IterableDataset):
    """The parts that are missing, as far as they are the business of one process and worker."""

    def __init__(self, folder: Path, sources: list[RowSource], reader: RecordReader, process: int, num_processes: int):
        self.folder = folder
        self.sources = sources
        # A row that the tasks of this run have no use for is kept for runs with others.
        self.reader = copy(reader)
        self.reader.masking = MaskingConfig()
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

    def _parts(self) -> Iterator[tuple[int, int, int, list[dict[str, Any] | BrokenShard]]]:
        """Source, shard and first row of every part, with its rows."""
        for number, source in enumerate(self.sources):
            for shard in range(source.num_shards):
                rows = read_shard(source, shard)
                for first in count(step=ROWS):
                    part = list(islice(rows, ROWS))
                    if not part:
                        break
                    yield number, shard, first, part

    def _read(self, key: RowKey, row: dict[str, Any] | BrokenShard) -> Record | str:
        try:
            return self.reader.read(key, row, everything=True)
        except BadRecord as error:
            return str(error)


def _write_parts(
    folder: Path,
    sources: list[RowSource],
    reader: RecordReader,
    encoder: RecordEncoder,
    num_workers: int,
    accelerator: Accelerator,
) -> None:
    parts = Parts(folder, sources, reader, accelerator.process_index, accelerator.num_processes)
    loader = start_workers(parts, num_workers)
    with tqdm(desc="encoding", unit="record", disable=not accelerator.is_local_main_process) as progress:
        for part in loader:
            rows = []
            for row in part.rows:
                rows.append(_error_row(row) if isinstance(row, str) else _encoded_row(row, encoder))
                progress.update()
            with replacing(part.path) as temporary:
                pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)


def _error_row(reason: str) -> dict[str, Any]:
    return {"tensors": b"", "available": [], "task": None, "error": reason, "broken": {}}


def _encoded_row(record: Record, encoder: RecordEncoder) -> dict[str, Any]:
    # One at a time, so that the memory is that of one window.
    (encoded,) = encoder.encode([record])
    tensors = {name: value.cpu().contiguous() for name, value in encoded.tensors().items()}
    return {
        "tensors": save(tensors),
        "available": sorted(record.available),
        "task": record.task,
        "error": None,
        "broken": record.broken,
    }
