"""WebDataset tars on this machine: files with the same name before the first dot are a row."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ...messages import first_line
from .streaming import Row, Unreadable


class TarShards:
    """
    Rows of tars, one shard for each. A row has a column for each of its files, named after the extension.

    A file is `{"path": ..., "bytes": ...}`; `.json` is parsed and `.txt` is text. `datasets` reads tars too, but refuses
    all of them if the first one is damaged.

    Args:
        files: The tars.
    """

    def __init__(self, files: list[Path]):
        self.files = files
        self.num_shards = len(files)
        self.num_rows = None
        self.columns: list[str] = []
        for shard in range(min(len(files), 4)):
            for row in islice(self.rows(shard), 4):
                if not isinstance(row, Unreadable):
                    self.columns = list(dict.fromkeys([*self.columns, *row]))

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Yield the rows of a tar, starting at row `start`. A damaged tar ends with an `Unreadable`."""
        path = self.files[shard]
        try:
            with tarfile.open(path) as tar:
                for members in islice(_grouped(tar), start, None):
                    yield {extension: _content(tar, member, extension) for extension, member in members.items()}
        except (tarfile.TarError, OSError, EOFError) as error:
            yield Unreadable(f"{path}: the rest of this shard cannot be read ({first_line(error)})")


def _grouped(tar: tarfile.TarFile) -> Iterator[dict[str, tarfile.TarInfo]]:
    key, group = None, {}
    for member in tar:
        path = PurePosixPath(member.name)
        stem, dot, extension = path.name.partition(".")
        if not member.isfile() or not dot or not stem:
            continue
        if group and path.with_name(stem) != key:
            yield group
            group = {}
        key = path.with_name(stem)
        group[extension.lower()] = member
    # tarfile takes a cut inside of a header for the end.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    if group:
        yield group


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> Any:
    data = tar.extractfile(member).read()
    if len(data) < member.size:
        raise EOFError(f"{member.name} is cut off")
    if extension.endswith("json"):
        with suppress(ValueError):
            return json.loads(data)
        return None
    if extension == "txt":
        return data.decode(errors="replace").strip()
    return {"path": member.name, "bytes": data}
