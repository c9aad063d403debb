import json
from itertools import islice

import pytest
from number_rows import NumberReader, Numbers

from audiox_diffusers.training.data.loading import RecordBatches, load_batches
from audiox_diffusers.training.data.records import BadRecord
from audiox_diffusers.training.data.streaming import MixedRowStream, RowStream, Unreadable


def stream(source, number=0, total=1, seed=0, buffer=4) -> RowStream:
    return RowStream(source, 0, number, total, seed, buffer)


def epoch(rows: RowStream, which: int) -> list[int]:
    found = []
    for key, row in rows:
        if key.epoch > which:
            return found
        if key.epoch == which:
            found.append(row["number"])


@pytest.mark.parametrize("shards, streams", [(8, 1), (8, 2), (8, 3), (8, 8), (1, 4), (3, 4)])
def test_an_epoch_has_every_row_once(shards, streams):
    source = Numbers([5 + shard for shard in range(shards)])
    orders = []
    for which in (0, 1):
        parts = [epoch(stream(source, number, streams), which) for number in range(streams)]
        assert sorted(sum(parts, [])) == list(range(sum(source.sizes)))
        assert max(map(len, parts)) > 0 and min(map(len, parts)) > 0
        orders.append(parts)
    assert orders[0] != orders[1]


def test_shuffling_depends_on_the_seed():
    source = Numbers([20, 20])
    plain = epoch(stream(source, buffer=1), 0)
    assert plain == list(range(40))
    shuffled = epoch(stream(source, seed=1, buffer=10), 0)
    assert shuffled != plain and shuffled == epoch(stream(source, seed=1, buffer=10), 0)
    assert shuffled != epoch(stream(source, seed=2, buffer=10), 0)
    # A row stays in its block.
    assert {tuple(sorted(shuffled[first : first + 10])) for first in range(0, 40, 10)} == {
        tuple(range(first, first + 10)) for first in range(0, 40, 10)
    }


def mixed(number=0, total=2) -> MixedRowStream:
    sources = [Numbers([5, 3, 4, 1]), Numbers([7], first=100)]
    streams = [RowStream(source, index, number, total, 3, 4) for index, source in enumerate(sources)]
    return MixedRowStream(streams, [3.0, 1.0], seed=3)


def test_resumes_at_every_row():
    """Positions cross the ends of blocks, shards and epochs, and survive JSON."""
    whole, unbroken, states = mixed(), [], []
    iterator = iter(whole)
    for _ in range(60):
        states.append(json.loads(json.dumps(whole.state_dict())))
        unbroken.append(next(iterator))
    for position in range(50):
        resumed = mixed()
        resumed.load_state_dict(states[position])
        assert list(islice(resumed, 10)) == unbroken[position : position + 10]


def test_mixes_by_weight():
    rows = list(islice(mixed(total=1), 2000))
    share = sum(key.source == 0 for key, _ in rows) / len(rows)
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5


def test_a_damaged_shard_ends_where_it_is_damaged():
    source = Numbers([4, 4, 4], broken=(1, 2))
    rows = [row for _, row in islice(stream(source, buffer=1), 11)]
    assert [row["number"] for row in rows if not isinstance(row, Unreadable)] == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert isinstance(rows[6], Unreadable) and "bad block" in rows[6].reason


def test_a_stream_without_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows for data stream 2 of 4.*--dataloader_num_workers"):
        next(iter(stream(Numbers([2]), 2, 4)))


def batches(workers=0, process=0, processes=1, reader=None, limit=10, **resumed):
    sources = [Numbers([9, 8, 7, 6]), Numbers([5], first=100)]
    dataset = RecordBatches(
        sources, [2.0, 1.0], reader or NumberReader(), 3, 7, 4, process, processes, limit, **resumed
    )
    return load_batches(dataset, workers)


def test_processes_and_workers_are_exchangeable():
    """Two processes with two workers read in a step what one process with four workers reads in two steps."""
    one = [batch.records for batch in islice(batches(workers=4), 16)]
    two = [[batch.records for batch in islice(batches(2, process, 2), 8)] for process in range(2)]
    assert [two[turn % 2][turn // 2] for turn in range(16)] == one


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_batches_resume(workers):
    unbroken, states = [], {}
    for taken, batch in enumerate(islice(batches(workers), 12)):
        unbroken.append(batch.records)
        states[batch.stream] = batch.state
        if taken == 4:
            kept = {stream: json.loads(json.dumps(state)) for stream, state in states.items()}
    resumed = batches(workers, batches=5, states=kept)
    assert [batch.records for batch in islice(resumed, 7)] == unbroken[5:]


def test_bad_records_are_skipped_and_reported():
    everything = [number for batch in islice(batches(), 10) for number in batch.records]
    good = [number for number in everything if number % 5 or not number]
    loaded = list(islice(batches(reader=NumberReader(bad=5)), 10))
    assert [number for batch in loaded for number in batch.records][: len(good)] == good
    skipped = [reason for batch in loaded for _, reason in batch.skipped]
    assert skipped and all(int(reason.split()[0]) % 5 == 0 for reason in skipped)


def test_too_many_bad_records_in_a_row():
    source = Numbers([12])

    class Gap:
        def read(self, key, row):
            if 3 <= row["number"] < 8:
                raise BadRecord("is in the gap")
            return row["number"]

    def load(limit):
        return load_batches(RecordBatches([source], [1.0], Gap(), 2, 0, 1, 0, 1, limit), 0)

    assert [batch.records for batch in islice(load(6), 3)] == [[0, 1], [2, 8], [9, 10]]
    with pytest.raises(
        ValueError, match="5 bad records in a row.*--max_bad_records 5.*row 7 of shard 0.*is in the gap"
    ):
        list(islice(load(5), 3))


class Files:
    """Rows that hold media of these sizes."""

    name, num_shards = "files", 1

    def __init__(self, sizes):
        self.sizes = sizes

    def rows(self, shard, start=0):
        for number in range(start, len(self.sizes)):
            yield {"number": number, "audio": {"bytes": bytes(self.sizes[number]), "path": None}}


def test_a_block_of_the_shuffle_is_bounded_in_bytes():
    """A block ends with the row that reaches the limit, so every row stays within its block."""
    stream = RowStream(Files([40, 70, 300, 10, 10, 10, 90, 5]), 0, 0, 1, 0, 1000, shuffle_buffer_bytes=100)
    order = [row["number"] for _, row in islice(stream, 8)]
    assert [sorted(order[first:last]) for first, last in ((0, 2), (2, 3), (3, 7), (7, 8))] == [
        [0, 1],
        [2],
        [3, 4, 5, 6],
        [7],
    ]


def test_blocks_bounded_in_bytes_resume():
    def create():
        return RowStream(Files([30 * (row % 5) for row in range(20)]), 0, 0, 1, 0, 1000, shuffle_buffer_bytes=100)

    whole = [row["number"] for _, row in islice(create(), 45)]
    for stopped in (1, 7, 19, 20, 33):
        first, second = create(), create()
        rows = [row["number"] for _, row in islice(first, stopped)]
        second.position = first.position
        assert rows + [row["number"] for _, row in islice(second, 45 - stopped)] == whole
