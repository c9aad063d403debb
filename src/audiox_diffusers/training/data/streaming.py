"""
Endless streams of rows, one for each data-loading worker of each process.

What a stream reads depends on its number, the number of streams and the seed, and on nothing else: `P` processes with
`w` workers each read what one process with `P * w` workers reads. A stream stops and goes on at any row.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from .seeds import derive_seed


class RowSource(Protocol):
    """A dataset as shards of rows."""

    name: str
    num_shards: int

    def rows(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of one shard, from row `start` on."""


class RowKey(NamedTuple):
    """What a row is called in seeds and logs."""

    source: int
    epoch: int
    shard: int
    row: int


class BrokenShard(NamedTuple):
    """In the place of the rows that could not be read."""

    reason: str


def read_shard(source: RowSource, shard: int, first: int = 0) -> Iterator[dict[str, Any] | BrokenShard]:
    """The rows of a shard from row `first` on. A damaged shard ends where it cannot be read on."""
    rows = source.rows(shard, first)
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # what is raised depends on the format
            reason = (str(error).strip().splitlines() or [""])[0]
            yield BrokenShard(f"the shard cannot be read on ({type(error).__name__}: {reason})")
            return
        if row is None:
            return
        yield row


@dataclass(frozen=True)
class Position:
    """
    Where a stream of one source stands: in which epoch, at which shard of its order and which row of it the current
    block of the shuffle begins, the number of the block, and how many rows of it have been given out.
    """

    epoch: int = 0
    turn: int = 0
    row: int = 0
    block: int = 0
    given: int = 0


class RowStream:
    """
    One stream of one source. In every epoch the shards are put into a new order and divided among the streams; where
    there are fewer shards than streams, all streams read all shards and each keeps other rows. So no row is read twice
    in an epoch. Rows are then shuffled in blocks, which, unlike a buffer that is drawn from, can be entered again.

    Args:
        source: what to read.
        number: of the source, among those that are mixed.
        stream, num_streams: number of this stream, and how many there are.
        seed: of the shuffles.
        shuffle_buffer_size: rows in a block; with 1 rows and shards keep their order.

    Raises:
        ValueError: while iterating, if there is no row for this stream.
    """

    def __init__(
        self, source: RowSource, number: int, stream: int, num_streams: int, seed: int, shuffle_buffer_size: int
    ):
        self.source = source
        self.number = number
        self.stream, self.num_streams = stream, num_streams
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.position = Position()

    def __iter__(self) -> Iterator[tuple[RowKey, dict[str, Any] | BrokenShard]]:
        while True:
            rows = self._epoch(self.position)
            empty = self.position == Position(epoch=self.position.epoch)
            while block := list(islice(rows, self.shuffle_buffer_size)):
                empty = False
                for given in self._order("block", self.position.block, len(block))[self.position.given :]:
                    self.position = replace(self.position, given=self.position.given + 1)
                    yield block[given][1:]
                turn, row = block[-1][0]
                self.position = replace(self.position, turn=turn, row=row, block=self.position.block + 1, given=0)
            if empty:
                raise ValueError(
                    f"`--dataset {self.source.name}` has no row for data stream {self.stream} of {self.num_streams}:"
                    " it needs at least one for each worker of each process; lower `--dataloader_num_workers`."
                )
            self.position = Position(epoch=self.position.epoch + 1)

    def _epoch(self, start: Position) -> Iterator[tuple[tuple[int, int], RowKey, dict[str, Any] | BrokenShard]]:
        """The rows of an epoch in the order of the shards, each with the place where the next one begins."""
        shards = self._order("shards", start.epoch, self.source.num_shards)
        apart = len(shards) >= self.num_streams
        if apart:
            shards = shards[self.stream :: self.num_streams]
        for turn in range(start.turn, len(shards)):
            shard, first = shards[turn], start.row if turn == start.turn else 0
            for row, values in enumerate(read_shard(self.source, shard, first), first):
                if apart or (row + shard + start.epoch) % self.num_streams == self.stream:
                    yield (turn, row + 1), RowKey(self.number, start.epoch, shard, row), values

    def _order(self, what: str, number: int, count: int) -> list[int]:
        if self.shuffle_buffer_size == 1:
            return list(range(count))
        # The order of shards is the same for all streams, which divide them; that of a block is a stream's own.
        whose = (number,) if what == "shards" else (self.position.epoch, self.stream, number)
        seed = derive_seed(self.seed, self.number, what, *whose)
        return np.random.default_rng(seed).permutation(count).tolist()


class MixedRowStream:
    """
    One stream of several sources, which are drawn from with `weights`. Each begins anew, in another order, when it ends.
    """

    def __init__(self, streams: list[RowStream], weights: list[float], seed: int):
        self.streams = streams
        self.shares = np.cumsum(weights) / np.sum(weights)
        self.seed = derive_seed(seed, "mix", streams[0].stream)
        self.count = 0

    def __iter__(self) -> Iterator[tuple[RowKey, dict[str, Any] | BrokenShard]]:
        iterators = [iter(stream) for stream in self.streams]
        while True:
            draw = np.random.default_rng([self.seed, self.count]).random()
            self.count += 1
            yield next(iterators[np.searchsorted(self.shares, draw, side="right")])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON can hold it."""
        return {"count": self.count, "positions": [asdict(stream.position) for stream in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a stream of the same sources, seed and numbers stood."""
        self.count = state["count"]
        for stream, position in zip(self.streams, state["positions"], strict=True):
            stream.position = Position(**position)
