"""Numbers as training data. Worker processes import this module."""

from audiox_diffusers.training.data.records import BadRecord


class Numbers:
    """A source whose rows are numbers. It fails at `broken`, a shard and a row."""

    name = "numbers"

    def __init__(self, sizes: list[int], first: int = 0, broken: tuple[int, int] | None = None):
        self.sizes, self.first, self.broken = sizes, first, broken
        self.num_shards = len(sizes)

    def rows(self, shard, start=0):
        for row in range(start, self.sizes[shard]):
            if (shard, row) == self.broken:
                raise OSError("bad block")
            yield {"number": self.first + sum(self.sizes[:shard]) + row}


class NumberReader:
    """Accepts all numbers except multiples of `bad`."""

    def __init__(self, bad: int = 1000):
        self.bad = bad

    def read(self, key, row):
        if row["number"] and row["number"] % self.bad == 0:
            raise BadRecord(f"{row['number']} is bad")
        return row["number"]
