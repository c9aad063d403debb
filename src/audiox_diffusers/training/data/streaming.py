"""
Endless streams of rows, one for each data-loading worker of each process.

A stream depends on its number, the number of streams and the seed alone: `P` processes with `w` workers each read what
one process with `P * w` workers reads. A stream can stop and resume at any row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...messages import first_line
from .seeds import derive_seed

# Most data that a worker holds to shuffle it.
SHUFFLE_BUFFER_BYTES = 2**28


class RowSource(Protocol):
    """A dataset that is split into shards of rows."""

    name: str
    num_shards: int

    def rows(self, shard: int, start: int = 0) -> Iterator["Row"]:
        """Yield the rows of one shard, starting at row `start`."""


class Unreadable(NamedTuple):
    """Stands for a row that cannot be read, or for the rest of a damaged shard."""

    reason: str


Row = dict[str, Any] | Unreadable


class RowKey(NamedTuple):
    """Identifies a row in seeds and logs."""

    source: int
    epoch: int
    shard: int
    row: int


def stored_bytes(value: Any) -> int:
    """Return how many bytes of text and binary data a row holds."""
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(stored_bytes, value.values()))
    return sum(map(stored_bytes, value)) if isinstance(value, (list, tuple)) else 0


def read_shard(source: RowSource, shard: int, start: int = 0) -> Iterator[Row]:
    """Yield the rows of a shard, starting at row `start`. A damaged shard ends with an `Unreadable`."""
    try:
        yield from source.rows(shard, start)
    except Exception as error:  # the type depends on the format
        yield Unreadable(f"the rest of the shard cannot be read ({type(error).__name__}: {first_line(error)})")


@dataclass(frozen=True)
class Position:
    """
    Position of a [`RowStream`].

    Attributes:
        epoch: Number of the epoch.
        turn, row: Where the current block of the shuffle begins: index into the epoch's order of shards, and row.
        block: Number of the block in the epoch.
        given: Rows of the block that were already yielded.
    """

    epoch: int = 0
    turn: int = 0
    row: int = 0
    block: int = 0
    given: int = 0


class RowStream:
    """
    One stream of one source.

    Every epoch draws a new order of the shards and divides them among the streams, so no row is read twice. If there
    are fewer shards than streams, every stream reads all shards and keeps its share of the rows. Rows are shuffled in
    blocks: unlike a shuffle buffer, a block can be resumed.

    Args:
        source: Dataset to read.
        number: Number of the source among the mixed ones.
        stream, num_streams: Number of this stream, and of all streams.
        seed: Seed of the shuffles.
        shuffle_buffer_size: Largest number of rows in a block; 1 keeps the order of shards and rows.
        shuffle_buffer_bytes: A block ends with the row that reaches this many bytes.

    Raises:
        ValueError: While iterating, if this stream gets no rows.
    """

    def __init__(
        self,
        source: RowSource,
        number: int,
        stream: int,
        num_streams: int,
        seed: int,
        shuffle_buffer_size: int,
        shuffle_buffer_bytes: int = SHUFFLE_BUFFER_BYTES,
    ):
        self.source = source
        self.number = number
        self.stream, self.num_streams = stream, num_streams
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.shuffle_buffer_bytes = shuffle_buffer_bytes
        self.position = Position()

    def __iter__(self) -> Iterator[tuple[RowKey, Row]]:
        while True:
            rows = self._epoch(self.position)
            empty = self.position == Position(epoch=self.position.epoch)
            while block := self._block(rows):
                empty = False
                for given in self._order("block", self.position.block, len(block))[self.position.given :]:
                    self.position = replace(self.position, given=self.position.given + 1)
                    yield block[given][1:]
                turn, row = block[-1][0]
                self.position = replace(self.position, turn=turn, row=row, block=self.position.block + 1, given=0)
            if empty:
                raise ValueError(
                    f"`--dataset {self.source.name}` has no rows for data stream {self.stream} of {self.num_streams}."
                    " Every worker of every process needs at least one row; lower `--dataloader_num_workers`."
                )
            self.position = Position(epoch=self.position.epoch + 1)

    def _epoch(self, start: Position) -> Iterator[tuple[tuple[int, int], RowKey, Row]]:
        """Yield the rows of an epoch in the order of the shards, each with the position of the row after it."""
        shards = self._order("shards", start.epoch, self.source.num_shards)
        divided = len(shards) >= self.num_streams
        if divided:
            shards = shards[self.stream :: self.num_streams]
        for turn in range(start.turn, len(shards)):
            shard, first = shards[turn], start.row if turn == start.turn else 0
            for row, values in enumerate(read_shard(self.source, shard, first), first):
                if divided or (row + shard + start.epoch) % self.num_streams == self.stream:
                    yield (turn, row + 1), RowKey(self.number, start.epoch, shard, row), values

    def _block(self, rows: Iterator[tuple[tuple[int, int], RowKey, Row]]) -> list[tuple[tuple[int, int], RowKey, Row]]:
        """Take the rows of a block. It is empty at the end of an epoch."""
        block, size = [], 0
        for item in islice(rows, self.shuffle_buffer_size):
            block.append(item)
            size += stored_bytes(item[-1])
            if size >= self.shuffle_buffer_bytes:
                break
        return block

    def _order(self, kind: str, number: int, count: int) -> list[int]:
        if self.shuffle_buffer_size == 1:
            return list(range(count))
        # All streams share the order of shards. Each has its own order within blocks.
        owner = (number,) if kind == "shards" else (self.position.epoch, self.stream, number)
        seed = derive_seed(self.seed, self.number, kind, *owner)
        return np.random.default_rng(seed).permutation(count).tolist()


class MixedRowStream:
    """
    One stream of several sources, sampled by weight. A source that ends starts its next epoch.

    Args:
        streams: One stream for each source, all with the same number.
        weights: Sampling weight of each source.
        seed: Seed of the choice between sources.
    """

    def __init__(self, streams: list[RowStream], weights: list[float], seed: int):
        self.streams = streams
        self.shares = np.cumsum(weights) / np.sum(weights)
        self.seed = derive_seed(seed, "mix", streams[0].stream)
        self.count = 0

    def __iter__(self) -> Iterator[tuple[RowKey, Row]]:
        iterators = [iter(stream) for stream in self.streams]
        while True:
            draw = np.random.default_rng([self.seed, self.count]).random()
            self.count += 1
            yield next(iterators[np.searchsorted(self.shares, draw, side="right")])

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream as JSON values."""
        return {"count": self.count, "positions": [asdict(stream.position) for stream in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the position of a stream with the same sources, seed and numbers."""
        self.count = state["count"]
        for stream, position in zip(self.streams, state["positions"], strict=True):
            stream.position = Position(**position)
