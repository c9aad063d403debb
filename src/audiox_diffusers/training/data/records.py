"""Rows of a dataset, decoded into windows: sound, frames and captions of the same seconds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import torch

from ...media import media_duration
from ..arguments import MaskingConfig
from .bad_records import BadRecord, bad_records
from .cells import Caption, Media, captions_within, check_seconds, read_captions, stored_media
from .decoding import (
    Pictures,
    RecordSound,
    check_not_black,
    decode_image,
    decode_prompt,
    decode_video,
    decodes_in_blocks,
    is_silent,
)
from .masking import TaskSpec, draw_task_spec
from .seeds import generator_for
from .streaming import Row, RowKey, Unreadable
from .windows import Crop, WindowSpec, draw_crops


@dataclass(frozen=True)
class Facts:
    """
    What decides how a row is used, known without decoding it.

    Attributes:
        start, seconds: The record as a part of its file, in seconds.
        captions: All captions of the row.
        media: Those of `"video"`, `"image"` and `"audio_prompt"` that the row has.
        task: Task that the row names.
    """

    start: float
    seconds: float
    captions: list[Caption]
    media: frozenset[str]
    task: str | None


class Choice(NamedTuple):
    """
    A window of a record, and what to train it on.

    Attributes:
        crop: Position of the window.
        available: Modalities of the window, see [`draw_task_spec`].
        task_spec: What to train it on.
        caption: Number of the caption to use, if the task spec uses one.
    """

    crop: Crop
    available: frozenset[str]
    task_spec: TaskSpec
    caption: int | None


@dataclass(frozen=True)
class OpenRow:
    """A row whose cells were checked."""

    facts: Facts
    sound: RecordSound
    media: dict[str, Media]


@dataclass
class Record:
    """
    One decoded window of a row.

    Attributes:
        key: Key of the row.
        choice: The window, and what to train it on.
        sound: `[channels, samples]`, the window with the sound around it that its latents depend on. For an audio prompt
            of the sound before the window, that sound too.
        window: First and last sample of the window in `sound`.
        caption: The caption that the task spec chose.
        video, image: Pictures, if the task spec needs them.
        prompt: `[channels, prompt_samples]`, the row's own audio prompt, if the task spec needs it.
    """

    key: RowKey
    choice: Choice
    sound: torch.Tensor
    window: tuple[int, int]
    caption: str | None = None
    video: Pictures | None = None
    image: Pictures | None = None
    prompt: torch.Tensor | None = None

    @property
    def task_spec(self) -> TaskSpec:
        return self.choice.task_spec

    @property
    def waveform(self) -> torch.Tensor:
        """The window, `[channels, num_samples]`, padded with silence."""
        return self.sound[:, slice(*self.window)]


@dataclass
class RecordReader:
    """
    Decodes rows.

    Args:
        spec: Window of the model.
        columns: For each dataset, its name for each of `COLUMNS` that it has. A dot leads into a nested column, as in
            `json.caption`.
        masking: How tasks are drawn.
        tasks: For each dataset, weights of its tasks instead of those of `masking`, or `None`. Empty for none.
        crop: Where the window lies in a longer record: `"random"`, different in every epoch, or `"start"`. A silent
            random window is drawn again, up to `CROPS` times.
        min_seconds: Shorter records are bad records.
        keep_silence: Whether silent windows are used. Otherwise they are bad records.
        seed: Seed of the crops and task specs.
    """

    spec: WindowSpec
    columns: Sequence[Mapping[str, str]]
    masking: MaskingConfig
    crop: str
    min_seconds: float
    seed: int
    tasks: Sequence[Mapping[str, float] | None] = ()
    keep_silence: bool = False

    def read(self, key: RowKey, row: Row) -> Record:
        """
        Decode what the row's task spec needs.

        Raises:
            BadRecord: The row cannot be trained on.
        """
        with bad_records():
            return self._read(key, self.open(key, row))

    def open(self, key: RowKey, row: Row) -> OpenRow:
        """
        Check the cells of a row, without decoding its media.

        Raises:
            BadRecord: A cell is wrong, or there is no sound.
        """
        if isinstance(row, Unreadable):
            raise BadRecord(row.reason)
        with bad_records():
            row = self._rename(key.source, row)
            cells = {name: stored_media(row.get(name), name) for name in ("video", "image", "audio_prompt")}
            media = {name: cell for name, cell in cells.items() if cell is not None}
            source = stored_media(row.get("audio"), "audio") or media.get("video")
            if source is None:
                raise BadRecord("has neither audio nor video")
            duration = media_duration(source)
            start = check_seconds(row.get("start"), "start", 0.0)
            seconds = min(check_seconds(row.get("end"), "end", duration), duration) - start
            captions = read_captions(row.get("caption"))
            task = row.get("task")
            facts = Facts(start, seconds, captions, frozenset(media), None if task is None else str(task))
            in_blocks = seconds > self.spec.seconds and decodes_in_blocks(source)
            sound = RecordSound(source, start, seconds, self.spec.sampling_rate, self.spec.channels, in_blocks)
            return OpenRow(facts, sound, media)

    def choices(self, key: RowKey, facts: Facts) -> Iterator[Choice]:
        """
        Draw windows of a record, the next one if the one before is silent.

        Raises:
            BadRecord: The record is too short, or has no task that can be trained.
        """
        if facts.seconds < self.min_seconds:
            raise BadRecord(f"is too short: {max(0.0, facts.seconds):.2f} s, needs {self.min_seconds:g} s")
        spec, generator = self.spec, generator_for(self.seed, "crop", *key)
        for crop in draw_crops(spec, facts.seconds, "video" in facts.media, self.crop == "random", generator):
            past = crop.frame * spec.hop_length / spec.sampling_rate
            end = facts.start + min(past + spec.num_samples / spec.sampling_rate, facts.seconds)
            captions = captions_within(facts.captions, facts.start + past, end)
            given = {
                "caption": bool(captions),
                "video": "video" in facts.media,
                "image": "image" in facts.media,
                "previous": "audio_prompt" in facts.media or past >= self.min_seconds,
            }
            available = frozenset(name for name in given if given[name])
            task_spec = self._task_spec(key, available, facts.task)
            caption = captions[int(task_spec.caption * len(captions))] if task_spec.text else None
            yield Choice(crop, available, task_spec, caption)

    def _task_spec(self, key: RowKey, available: frozenset[str], task: Any) -> TaskSpec:
        own = self.tasks[key.source] if self.tasks else None
        masking = self.masking if own is None else replace(self.masking, task_weights=dict(own))
        with bad_records():
            return draw_task_spec(masking, available, generator_for(self.seed, "plan", *key), task)

    def _read(self, key: RowKey, row: OpenRow) -> Record:
        for choice in self.choices(key, row.facts):
            record = self._sound(key, row, choice)
            if self.keep_silence or not is_silent(record.waveform.abs().max()):
                break
        else:
            raise BadRecord("is silent")
        if choice.caption is not None:
            record.caption = row.facts.captions[choice.caption].text
        for name in sorted(needs(choice.task_spec)):
            self._decode(record, row, name)
        return record

    def _sound(self, key: RowKey, row: OpenRow, choice: Choice) -> Record:
        """Decode the window and the sound around it."""
        spec, frame = self.spec, choice.crop.frame
        before = spec.context_frames
        if choice.task_spec.audio == "previous" and "audio_prompt" not in row.media:
            before += ceil(spec.prompt_samples / spec.hop_length)
        first = max(0, frame - before) * spec.hop_length
        begin = frame * spec.hop_length
        end = begin + spec.num_samples
        stop = min(end + spec.context_frames * spec.hop_length, spec.encoded_samples(row.facts.seconds))
        return Record(key, choice, row.sound.read(first, stop), (begin - first, end - first))

    def _decode(self, record: Record, row: OpenRow, name: str) -> None:
        spec = self.spec
        if name == "video":
            start = row.facts.start + float(record.choice.crop.picture * spec.picture_period)
            record.video = decode_video(row.media["video"], spec, start, spec.num_frames, spec.num_sync_frames)
            check_not_black(record.video.frames.flatten(1).any(1))
        elif name == "image":
            record.image = decode_image(row.media["image"], spec)
        elif "audio_prompt" in row.media:
            record.prompt = decode_prompt(row.media["audio_prompt"], spec)

    def _rename(self, source: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the row under the names of `COLUMNS`."""
        named = {}
        for name, column in self.columns[source].items():
            value = row
            for part in column.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            named[name] = value
        return named


def needs(task_spec: TaskSpec) -> set[str]:
    """Return the modalities that a task spec needs decoded, other than sound and text."""
    wanted = {"video": task_spec.video, "image": task_spec.image, "previous": task_spec.audio == "previous"}
    return {name for name in wanted if wanted[name]}
