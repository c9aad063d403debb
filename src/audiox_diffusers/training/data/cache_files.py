"""Files of a latent cache. [`latent_cache`] describes the layout."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...atomic import replacing
from .cells import Caption
from .records import Facts

# Rows of a part.
ROWS = 16
# A file of tensors is written when it has reached this size.
FILE_BYTES = 2**26


def part_path(folder: Path, source: int, shard: int, first_row: int) -> Path:
    """Return the path of the index of the part that starts at row `first_row`."""
    return folder / f"source-{source:03}" / f"shard-{shard:05}-row-{first_row:09}.json"


def read_parts(folder: Path, source: int, shard: int, start: int) -> Iterator[dict[str, Any]]:
    """Yield the entries of a shard's rows, starting at row `start`. Each names its part and its number there."""
    first = start - start % ROWS
    while (path := part_path(folder, source, shard, first)).exists():
        entries = json.loads(path.read_text(encoding="utf-8"))
        for number in range(max(0, start - first), len(entries)):
            yield {**entries[number], "part": str(path), "number": number}
        first += ROWS


def save_facts(facts: Facts) -> dict[str, Any]:
    """Return facts as JSON values."""
    captions = [[start, None if end == inf else end, text] for start, end, text in facts.captions]
    return {**asdict(facts), "captions": captions, "media": sorted(facts.media)}


def load_facts(values: dict[str, Any]) -> Facts:
    """Return the facts that `save_facts` saved."""
    captions = [Caption(start, inf if end is None else end, text) for start, end, text in values["captions"]]
    return Facts(**{**values, "captions": captions, "media": frozenset(values["media"])})


def distinct_texts(captions: list[Caption]) -> list[str]:
    """Return the texts to encode, in the order in which they are stored."""
    return list(dict.fromkeys(caption.text for caption in captions))


def _tensor_file(part: Path, number: int) -> Path:
    return part.with_name(f"{part.stem}-{number:03}.safetensors")


class PartWriter:
    """
    Writes the rows of a part. Tensors are given in chunks along the first dimension, so that a row can be larger than
    memory.

    Args:
        path: Path of the index, which is written last.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = self._files = 0

    def start(self, **entry: Any) -> None:
        """Start a row with this entry of the index."""
        self.entries.append({**entry, "tensors": {}})

    def add(self, name: str, chunk: torch.Tensor) -> None:
        """Append a chunk to a tensor of the current row. All chunks but the last are as long as the first."""
        tensor = self.entries[-1]["tensors"].setdefault(name, {"chunk": len(chunk), "length": 0, "files": []})
        key = f"{len(self.entries) - 1}.{name}.{len(tensor['files'])}"
        self._tensors[key] = chunk.detach().cpu().contiguous()
        self._bytes += self._tensors[key].nbytes
        tensor["files"].append(self._files)
        tensor["length"] += len(chunk)
        if self._bytes >= FILE_BYTES:
            self._flush()

    def fail(self, reason: str) -> None:
        """Say why the current row cannot be used."""
        self.entries[-1] = {"error": reason}

    def finish(self) -> None:
        """Write what is left, then the index."""
        if self._tensors:
            self._flush()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.entries), encoding="utf-8")

    def _flush(self) -> None:
        with replacing(_tensor_file(self.path, self._files)) as temporary:
            save_file(self._tensors, temporary)
        self._tensors, self._bytes = {}, 0
        self._files += 1


class StoredRow:
    """
    Tensors of a row of a part, read from the disk as far as they are asked for.

    Args:
        entry: Entry of the row, see [`read_parts`].
    """

    def __init__(self, entry: dict[str, Any]):
        self.part = Path(entry["part"])
        self.number = entry["number"]
        self.tensors = entry["tensors"]
        self._open: dict[int, Any] = {}

    def length(self, name: str) -> int:
        """Return the length of a tensor."""
        return self.tensors[name]["length"]

    def read(self, name: str, first: int, stop: int) -> torch.Tensor:
        """Return elements `first` to `stop`, and fewer if the tensor ends earlier. It must not end before `first`."""
        tensor = self.tensors[name]
        stop = min(stop, tensor["length"])
        last = len(tensor["files"]) - 1
        parts = []
        for number in range(min(first // tensor["chunk"], last), min((stop - 1) // tensor["chunk"], last) + 1):
            begin = number * tensor["chunk"]
            end = stop if number == last else min(stop, begin + tensor["chunk"])
            stored = self._file(tensor["files"][number]).get_slice(f"{self.number}.{name}.{number}")
            parts.append(stored[max(0, first - begin) : end - begin])
        # Not a view, which would keep the whole file open.
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

    def chunk(self, name: str, number: int) -> torch.Tensor:
        """Return one chunk."""
        return self._file(self.tensors[name]["files"][number]).get_tensor(f"{self.number}.{name}.{number}").clone()

    def _file(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(_tensor_file(self.part, number), framework="pt")
        return self._open[number]
