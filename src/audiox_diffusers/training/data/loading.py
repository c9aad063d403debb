"""Streams of rows -> decoded samples, in worker processes."""

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .records import BadRecord, Record
from .streaming import BrokenShard, MixedRowStream, RowKey, RowSource, RowStream


class RowReader(Protocol):
    """Decodes a row: a [`Record`], or a sample of a cache."""

    def read(self, key: RowKey, row: dict[str, Any] | BrokenShard) -> Any:
        """`BadRecord` if it cannot be trained on."""


@dataclass
class LoadedBatch:
    """
    What a worker gives.

    Attributes:
        records: as many as a batch has.
        stream: number of the stream they come from.
        state: where the stream stands after them.
        skipped: the rows that were passed over on the way, and why.
    """

    records: list[Record]
    stream: int
    state: dict[str, Any]
    skipped: list[tuple[RowKey, str]]


class RecordBatches(IterableDataset):
    """
    Endless batches of the streams of one process, one stream for each worker.

    Args:
        sources, weights: what to mix, and how much of each.
        reader: decodes a row.
        batch_size: records in a batch.
        seed, shuffle_buffer_size: of the streams.
        process, num_processes: which one this is, and of how many.
        max_bad_records: so many bad rows in a row are an error.
        batches: how many batches of this process were taken before; the next one comes from the worker whose turn it
            is.
        states: where the streams stood then, by number.
    """

    def __init__(
        self,
        sources: list[RowSource],
        weights: list[float],
        reader: RowReader,
        batch_size: int,
        seed: int,
        shuffle_buffer_size: int,
        process: int,
        num_processes: int,
        max_bad_records: int,
        batches: int = 0,
        states: dict[int, dict[str, Any]] | None = None,
    ):
        self.sources = sources
        self.weights = weights
        self.reader = reader
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.process, self.num_processes = process, num_processes
        self.max_bad_records = max_bad_records
        self.batches = batches
        self.states = states or {}

    def __iter__(self) -> Iterator[LoadedBatch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        stream = (self.batches + worker) % num_workers * self.num_processes + self.process
        rows = self._stream(stream, num_workers * self.num_processes)
        iterator, in_a_row, read = iter(rows), 0, 0
        while True:
            records, skipped = [], []
            while len(records) < self.batch_size:
                key, row = next(iterator)
                try:
                    records.append(self.reader.read(key, row))
                    in_a_row, read = 0, read + 1
                except BadRecord as error:
                    skipped.append((key, str(error)))
                    in_a_row += 1
                    if in_a_row >= self.max_bad_records:
                        raise ValueError(self._hopeless(in_a_row, read, skipped)) from None
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

    def _hopeless(self, in_a_row: int, read: int, skipped: list[tuple[RowKey, str]]) -> str:
        key, reason = skipped[-1]
        name = self.sources[key.source].name
        return (
            f"{in_a_row} records in a row cannot be trained on (`--max_bad_records {self.max_bad_records}`), after"
            f" {read} good ones. The last one, row {key.row} of shard {key.shard} of {name}: {reason}"
        )


def load_batches(dataset: RecordBatches, num_workers: int) -> Iterator[LoadedBatch]:
    """The batches of a process; with `num_workers` 0 they are decoded in the process itself."""
    return start_workers(dataset, num_workers)


def start_workers(dataset: IterableDataset, num_workers: int) -> Iterator[Any]:
    """
    What the dataset gives, as it is, from worker processes, or from this one where `num_workers` is 0.

    Workers are forked from a server that has computed nothing yet: a fork of a process whose threads have, as this one,
    may hang or crash. They do not hear SIGTERM: one to the whole group is answered by the main process, which writes a
    checkpoint first.
    """
    if num_workers:
        multiprocessing.set_forkserver_preload([__name__])
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        # Its own, as a draw from the global one would change what dropout draws after a resume.
        generator=torch.Generator(),
        multiprocessing_context="forkserver" if num_workers else None,
    )
    # Server and workers inherit what is blocked.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _as_it_is(item: Any) -> Any:
    return item
