"""Tables of media on this machine: CSV and JSON lines, with paths or with the ids of a public dataset."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import load_dataset

from .media_kinds import KINDS, kind_of
from .streaming import Row, Unreadable

# VGGSound has no header. `start` there is a time in the original video, not in the clip.
VGGSOUND = ["youtube_id", "start_seconds", "label", "split"]
IDS = ("youtube_id", "ytid", "YTID", "audiocap_id", "video_id", "clip_id", "id")
STARTS = ("start_seconds", "start_time", "start_s")
TURBO_TASKS = {"text": "text", "video": "video", "text+video": "text_video"}


class Tables:
    """
    Rows of CSV or JSON lines files, one shard for each file.

    Args:
        files: The files, all of one format.
        split: Rows of VGGSound with another split are left out.
        media_dir: Folder of the media of rows that have an id and no path.

    Raises:
        ValueError: A CSV has no header, or `media_dir` holds no media.
    """

    def __init__(self, files: list[Path], split: str, media_dir: Path | None):
        self.files = files
        self.split = split
        self.num_shards = len(files)
        self.media = None if media_dir is None else _media_by_name(media_dir)
        self.folders = [media_dir or file.parent for file in files]
        self._is_csv = files[0].suffix == ".csv"
        self._names = [_header(file) for file in files] if self._is_csv else None
        first = next((row for row in self._read(0) if not isinstance(row, Unreadable)), {})
        self._adapt: Callable[[dict[str, Any]], Row] = _from_turbo if _is_turbo(first) else self._with_media
        adapted = self._adapt(first)
        self.columns = [*first] if isinstance(adapted, Unreadable) else [*adapted]
        if self.media is not None:
            self.columns += sorted({kind_of(path) for path in self.media.values()} - set(self.columns))
        self.num_rows = (
            sum(1 for shard in range(self.num_shards) for _ in self._read(shard)) if self._small() else None
        )

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Yield the rows of one shard, starting at row `start`."""
        for row in islice(self._read(shard), start, None):
            yield row if isinstance(row, Unreadable) else self._adapt(row)

    def _small(self) -> bool:
        return sum(file.stat().st_size for file in self.files) < 2**24

    def _read(self, shard: int) -> Iterator[Row]:
        if not self._is_csv:
            yield from _json_lines(self.files[shard])
            return
        names = self._names[shard]
        options = {} if names is None else {"header": None, "names": names}
        table = load_dataset("csv", data_files=str(self.files[shard]), split="train", streaming=True, **options)
        for batch in table.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                if names is None or row["split"] == self.split:
                    yield row

    def _with_media(self, row: dict[str, Any]) -> Row:
        if self.media is None:
            return row
        for name in (name for name in IDS if row.get(name) is not None):
            start = next((int(row[column]) for column in STARTS if _is_number(row.get(column))), 0)
            key = str(row[name])
            for stem in (f"{key}_{start:06}", f"{key}_{start}", f"{key}_{1000 * start}", key, f"Y{key}"):
                if stem in self.media:
                    return {**row, kind_of(self.media[stem]): self.media[stem]}
        return (
            row if any(kind in row for kind in ("audio", "video")) else Unreadable("has no file in the media folder")
        )


def _header(file: Path) -> list[str] | None:
    """Return the names of the columns of a CSV without a header, `None` for one with a header."""
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        first = next(csv.reader(lines), [])
    if not any(_is_number(cell) for cell in first):
        return None
    if len(first) == len(VGGSOUND) and re.fullmatch(r"[\w-]{11}", first[0]) and _is_number(first[1]):
        return VGGSOUND
    raise ValueError(f"{file.name} has no header; put the names of its columns into the first line")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _media_by_name(folder: Path) -> dict[str, str]:
    found = {
        path.stem: str(path)
        for path in sorted(folder.rglob("*"))
        if KINDS.get(path.suffix.lower()) in ("audio", "video")
    }
    if not found:
        raise ValueError(f"{folder} holds no sound or video files")
    return found


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                row = None
                reason = f"line {number} is not JSON ({error})"
            else:
                reason = f"line {number} must be an object, got {type(row).__name__}"
            yield row if isinstance(row, dict) else Unreadable(reason)


def _is_turbo(row: dict[str, Any]) -> bool:
    return "path" in row and "_condition-" in str(row.get("type"))


def _from_turbo(row: dict[str, Any]) -> Row:
    """Convert a line of the manifest of AudioX-Turbo (arXiv 2606.12555)."""
    prompt, _, kind = str(row.get("type")).partition("_condition-")
    task = TURBO_TASKS.get(prompt)
    if prompt == "audio":
        # For music, the audio prompt is the sound before the target.
        task = "completion" if kind == "music" else "inpainting"
    texts = row.get("caption")
    texts = texts.get("audio_caption") if isinstance(texts, dict) else texts
    captions = [_caption(seconds, text) for seconds, text in texts.items()] if isinstance(texts, dict) else texts
    return {"audio": row.get("path"), "video": row.get("video_path"), "caption": captions, "task": task}


def _caption(seconds: str, text: str) -> dict[str, Any]:
    window = re.fullmatch(r"(\d+)-(\d+)", seconds)
    times = {"start": float(window[1]), "end": float(window[2])} if window else {}
    return {**times, "caption": text}
