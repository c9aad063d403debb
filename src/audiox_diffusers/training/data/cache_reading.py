"""Samples out of a latent cache. [`latent_cache`] describes its layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .bad_records import BadRecord, bad_records
from .batches import Sample
from .cache_files import StoredRow, distinct_texts, load_facts, read_parts
from .decoding import VideoEnded, check_not_black, is_silent
from .encoding import Encoded, RecordEncoder
from .records import Choice, Facts, RecordReader, needs
from .streaming import Row, RowKey, Unreadable


@dataclass
class CacheSource:
    """Rows of a complete cache, for one of its sources."""

    folder: Path
    source: int
    name: str
    num_shards: int

    def rows(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the rows of one shard, starting at row `start`. Tensors stay on the disk until they are used."""
        return read_parts(self.folder, self.source, shard, start)


class CacheReader:
    """
    Converts rows of a cache to samples.

    Args:
        reader: Draws windows and task specs.
        encoder: Encoder of the model.
    """

    def __init__(self, reader: RecordReader, encoder: RecordEncoder):
        self.reader = reader
        config = encoder.pipe.conditioner.config
        self.num_prompt_latents = config.num_audio_latents
        self.reads_waveforms = encoder.reads_waveforms

    def read(self, key: RowKey, row: Row) -> Sample:
        """Read what the task spec needs. Raise `BadRecord` if the row cannot be trained on."""
        if isinstance(row, Unreadable):
            raise BadRecord(row.reason)
        with bad_records():
            if "error" in row:
                raise BadRecord(row["error"])
            facts, stored, spec = load_facts(row["facts"]), StoredRow(row), self.reader.spec
            for choice in self.reader.choices(key, facts):
                frame = choice.crop.frame
                peak = stored.read("peaks", frame, frame + spec.num_latents).max()
                if self.reader.keep_silence or not is_silent(peak):
                    break
            else:
                raise BadRecord("is silent")
            for name in needs(choice.task_spec):
                if (reason := row["broken"].get("audio_prompt" if name == "previous" else name)) is not None:
                    raise BadRecord(reason)
            return Sample(key, choice.task_spec, self._encoded(stored, facts, choice))

    def _encoded(self, stored: StoredRow, facts: Facts, choice: Choice) -> Encoded:
        spec, task_spec, frame = self.reader.spec, choice.task_spec, choice.crop.frame
        encoded = Encoded(*stored.read("latents", frame, frame + spec.num_latents).T.chunk(2))
        if choice.caption is not None:
            texts = distinct_texts(facts.captions)
            encoded.text_embeds = stored.chunk("text", texts.index(facts.captions[choice.caption].text))
        if self.reads_waveforms:
            begin = frame * spec.hop_length
            encoded.waveform = stored.read("waveform", begin, begin + spec.prompt_samples).T
        if task_spec.audio == "previous":
            self._read_previous(stored, encoded, frame)
        if task_spec.video:
            first = choice.crop.picture * spec.period_frames
            if first >= stored.length("lit"):
                raise VideoEnded
            check_not_black(stored.read("lit", first, first + spec.num_frames))
            encoded.video_embeds = _repeat_last(stored, "frames", first, spec.num_frames)
            if spec.sync_stride:
                first = choice.crop.picture * spec.period_segments
                encoded.video_sync_embeds = _repeat_last(stored, "sync", first, spec.num_sync_segments).flatten(0, 1)
        if task_spec.image:
            encoded.image_embeds = stored.chunk("image", 0).repeat(spec.num_frames, 1, 1)
            if spec.sync_stride:
                encoded.image_sync_embeds = stored.chunk("image_sync", 0).repeat(spec.num_sync_segments, 1)
        return encoded

    def _read_previous(self, stored: StoredRow, encoded: Encoded, frame: int) -> None:
        spec = self.reader.spec
        if "audio_prompt" in stored.tensors:
            previous = stored.chunk("audio_prompt", 0).T
        elif self.reads_waveforms:
            begin = frame * spec.hop_length
            previous = stored.read("waveform", max(0, begin - spec.prompt_samples), begin).T
        else:
            previous = stored.read("latents", max(0, frame - self.num_prompt_latents), frame).T
        if self.reads_waveforms:
            encoded.previous_waveform = previous
        else:
            encoded.previous_mean, encoded.previous_std = previous.chunk(2)


def _repeat_last(stored: StoredRow, name: str, first: int, count: int) -> torch.Tensor:
    """Read `count` elements, with the last one repeated if the tensor ends earlier."""
    found = stored.read(name, first, first + count)
    return torch.cat((found, found[-1:].expand(count - len(found), -1, -1)))
