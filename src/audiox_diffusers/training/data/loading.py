"""Batches of decoded samples from worker processes."""

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .bad_records import BadRecord
from .records import Record
from .streaming import MixedRowStream, Row, RowKey, RowSource, RowStream


class RowReader(Protocol):
    """Decodes a row into a [`Record`], or into a sample of a cache."""

    def read(self, key: RowKey, row: Row) -> Any:
        """Raise `BadRecord` if the row cannot be used."""


@dataclass
class LoadedBatch:
    """
    A batch from a worker.

    Attributes:
        records: The decoded rows.
        stream: Number of the stream they come from.
        state: Position of the stream after them.
        skipped: Rows that were skipped on the way, and why.
    """

    records: list[Record]
    stream: int
    state: dict[str, Any]
    skipped: list[tuple[RowKey, str]]


@dataclass(eq=False)
class RecordBatches(IterableDataset):
    """
    Endless batches for one process, from one stream for each of its workers.

    Args:
        sources, weights: Datasets to mix, and the sampling weight of each.
        reader: Decodes rows.
        batch_size: Records of a batch.
        seed, shuffle_buffer_size: Settings of the streams, see [`RowStream`].
        process, num_processes: Number of this process, and of all processes.
        max_bad_records: Number of bad rows in a row that ends the run.
        batches: Batches this process has already taken. The next one comes from the worker whose turn it is.
        states: Positions of the streams at that time, by number.

    Raises:
        ValueError: While iterating, after `max_bad_records` bad rows in a row.
    """

    sources: list[RowSource]
    weights: list[float]
    reader: RowReader
    batch_size: int
    seed: int
    shuffle_buffer_size: int
    process: int
    num_processes: int
    max_bad_records: int
    batches: int = 0
    states: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LoadedBatch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        stream = (self.batches + worker) % num_workers * self.num_processes + self.process
        rows = self._stream(stream, num_workers * self.num_processes)
        iterator, bad, good = iter(rows), 0, 0
        while True:
            records, skipped = [], []
            while len(records) < self.batch_size:
                key, row = next(iterator)
                try:
                    records.append(self.reader.read(key, row))
                    bad, good = 0, good + 1
                except BadRecord as error:
                    skipped.append((key, str(error)))
                    bad += 1
                    if bad >= self.max_bad_records:
                        raise ValueError(
                            f"{bad} bad records in a row (`--max_bad_records {self.max_bad_records}`), after {good} good"
                            f" ones. The last one is row {key.row} of shard {key.shard} of"
                            f" {self.sources[key.source].name}: {error}"
                        ) from None
            yield LoadedBatch(records, stream, rows.state_dict(), skipped)

    def _stream(self, stream: int, num_streams: int) -> MixedRowStream:
        streams = [
            RowStream(source, number, stream, num_streams, self.seed, self.shuffle_buffer_size)
            for number, source in enumerate(self.sources)
        ]
        rows = MixedRowStream(streams, self.weights, self.seed)
        if stream in self.states:
            rows.load_state_dict(self.states[stream])
        return rows


def load_batches(dataset: IterableDataset, num_workers: int) -> Iterator[Any]:
    """
    Iterate over a dataset of batches in worker processes, or in this process if `num_workers` is 0.

    The workers are forked from a server that has run no threads: forks of a process with threads, such as this one, may
    hang or crash. They ignore SIGTERM, so when it is sent to the process group the main process can still write a
    checkpoint.
    """
    if num_workers:
        multiprocessing.set_forkserver_preload([__name__])
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,
        # A draw from the global generator would change dropout after a resume.
        generator=torch.Generator(),
        multiprocessing_context="forkserver" if num_workers else None,
    )
    # Server and workers inherit the blocked signal.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _identity(item: Any) -> Any:
    return item
