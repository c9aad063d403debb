"""A first look at a bounded number of rows, so that a run does not train on what its user did not mean."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Any

from ...media import media_duration
from .bad_records import BadRecord, bad_records
from .cells import captions_within, check_seconds, read_captions, stored_media
from .sources import MixedDataset
from .streaming import Unreadable

ROWS = 64  # to look at
SHARDS = 8
TEXT_TASKS = ("text", "text_video")
OUTSIDE = "`start` is after the end of the file"


@dataclass
class FirstLook:
    """
    What the first rows of a dataset hold.

    Attributes:
        dataset: The dataset.
        looked: Rows that were looked at.
        damaged: Why the rest of a shard cannot be read.
        whole: Whether these are all rows.
        seconds: Total length of the usable ones.
        shares: Number of usable rows that have a modality.
        skipped: Why rows cannot be used, and how many.
        captions: The different captions of each usable row.
    """

    dataset: MixedDataset
    looked: int = 0
    damaged: list[str] = field(default_factory=list)
    whole: bool = True
    seconds: float = 0.0
    shares: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    captions: list[str] = field(default_factory=list)

    @property
    def usable(self) -> int:
        return self.looked - self.skipped.total()

    @property
    def total(self) -> int | None:
        """Number of all rows, `None` if unknown."""
        return self.looked if self.whole else self.dataset.source.source.num_rows

    def table(self) -> str:
        """Return a table for the terminal."""
        rows = self.dataset.source
        size = "unknown, streamed"
        if self.total is not None:
            hours = self.seconds / max(1, self.usable) * (self.total if not self.whole else self.usable) / 3600
            size = f"{self.total} records, {'' if self.whole else 'about '}{hours:.3g} hours"
        lines = [f"Dataset {rows.name}: {size} (looked at {self.looked} rows)", f"  {'input':<8} {'column':<24} share"]
        for name in ("audio", "video", "image", "caption"):
            columns = " or ".join(rows.found.get(name, ["-" if name != "audio" else "sound of the video"]))
            share = self.shares[name] / max(1, self.usable)
            lines.append(f"  {name:<8} {columns:<24} {share:6.1%}")
        for name in ("audio_prompt", "task", "start", "end"):
            if name in rows.found:
                lines.append(f"  {name:<8} {' or '.join(rows.found[name])}")
        used = {column.split(".")[0] for columns in rows.found.values() for column in columns}
        unused = [name for name in rows.source.columns if name.split(".")[0] not in used and name[0] != "_"]
        lines += [f"  unused   {', '.join(unused)}"] if unused else []
        lines += [f"  skipped  {count} of {self.looked}: {reason}" for reason, count in self.skipped.most_common(5)]
        lines += [f"  damaged  {reason}" for reason in self.damaged[:5]]
        return "\n".join(lines)


def look(dataset: MixedDataset, min_seconds: float) -> FirstLook:
    """Look at up to `ROWS` rows of the first `SHARDS` shards. Files are opened, but not decoded."""
    found, source = FirstLook(dataset), dataset.source
    shards = min(source.num_shards, SHARDS)
    found.whole = shards == source.num_shards
    for shard in range(shards):
        quota = ceil(ROWS / shards)
        rows = list(islice(source.rows(shard), quota + 1))
        found.whole &= len(rows) <= quota
        for row in rows[:quota]:
            if isinstance(row, Unreadable):
                found.damaged.append(row.reason)
                continue
            found.looked += 1
            try:
                with bad_records():
                    _count(found, row, min_seconds)
            except BadRecord as error:
                found.skipped[str(error)] += 1
    return found


def _count(found: FirstLook, row: Mapping[str, Any], min_seconds: float) -> None:
    media = {name: stored_media(row.get(name), name) for name in ("audio", "video", "image")}
    sound = media["audio"] or media["video"]
    if sound is None:
        raise BadRecord("has neither audio nor video")
    duration = media_duration(sound)
    first = check_seconds(row.get("start"), "start", 0.0)
    last = min(check_seconds(row.get("end"), "end", duration), duration)
    if first >= duration:
        raise BadRecord(OUTSIDE)
    if last - first < min_seconds:
        raise BadRecord(f"is shorter than --min_seconds {min_seconds:g}")
    captions = read_captions(row.get("caption"))
    found.captions += dict.fromkeys(caption.text for caption in captions)
    found.seconds += last - first
    found.shares.update(name for name, value in media.items() if value is not None)
    # The sound track of a video is the target where there is no audio.
    found.shares["audio"] += media["audio"] is None
    found.shares["caption"] += bool(captions_within(captions, first, last))
    found.shares["text task"] += row.get("task") in (None, *TEXT_TASKS)


def check_look(found: FirstLook, task_weights: Mapping[str, float]) -> None:
    """
    Check that a dataset is what its user meant.

    Args:
        found: A first look at the dataset.
        task_weights: Weights of the tasks.

    Raises:
        ValueError: A task needs captions and there are none, most starts are outside of the files, or no row can be
            used.
    """
    name, options = found.dataset.source.name, found.dataset.options
    columns = ", ".join(found.dataset.source.source.columns)
    if found.skipped[OUTSIDE] > found.looked / 2:
        raise ValueError(
            f"--dataset {name}: in {found.skipped[OUTSIDE]} of {found.looked} rows, the start is after the end of the"
            " file. If it is a time in the original video, leave the column out with --start_column none"
        )
    if not found.usable and (found.looked or found.damaged):
        reason = found.skipped.most_common(1)[0][0] if found.looked else found.damaged[0]
        raise ValueError(f"--dataset {name}: none of the first {found.looked} rows can be used: {reason}")
    wanted = [task for task in TEXT_TASKS if task_weights.get(task, 0) > 0]
    if (
        wanted
        and found.shares["text task"]
        and not found.shares["caption"]
        and options.columns.get("caption") != "none"
    ):
        column = found.dataset.source.found.get("caption")
        lacking = f"the column {column[0]} holds no caption" if column else "no column with captions was found"
        raise ValueError(
            f"--dataset {name}: {lacking}, which --task_weights {wanted[0]} needs. Its columns are {columns}. Name one"
            " with --caption_column, or train without captions with --caption_column none"
        )
