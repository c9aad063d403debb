"""Rows of a dataset, decoded in pieces to be encoded into a latent cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .bad_records import BadRecord, bad_records
from .cache_files import ROWS, part_path
from .decoding import Pictures, RecordSound, VideoEnded, decode_image, decode_prompt, decode_video
from .records import RecordReader
from .streaming import Row, RowKey, RowSource, read_shard
from .windows import WindowSpec

# Most seconds of sound that are decoded at once. Longer blocks read files that cannot be sought in fewer passes.
BLOCK_SECONDS = 300


class Piece(NamedTuple):
    """
    A step in writing a part.

    Attributes:
        part: Path of the part's index.
        kind: `"row"` starts a row. `"sound"`, `"video"`, `"image"` and `"audio_prompt"` are pieces of it. `"broken"` says
            why one of them could not be decoded, and `"error"` why the row cannot be used. `"end"` ends the part.
        content: What belongs to the kind.
    """

    part: Path
    kind: str
    content: Any = None


@dataclass
class SoundPiece:
    """
    Some latent frames of a record.

    Attributes:
        samples: `[channels, n]`, their sound with that around it which they depend on.
        first, stop: First and last of their frames, counted in `samples`.
        end: Last sample that belongs to them, counted in `samples`.
    """

    samples: torch.Tensor
    first: int
    stop: int
    end: int


@dataclass
class VideoPiece:
    """
    Some frames of a video.

    Attributes:
        pictures: The frames.
        num_segments: Segments of Synchformer to make of them. The last frame is repeated as far as they need.
    """

    pictures: Pictures
    num_segments: int


class PartPieces(IterableDataset):
    """
    The missing parts that are assigned to this process and worker, in pieces.

    Whole shards are assigned if there are enough of them, so that each is read once. Otherwise the parts are.

    Args:
        folder: Folder of the cache.
        sources: Datasets to decode.
        reader: Opens rows.
        process, num_processes: Number of this process, and of all processes.
    """

    def __init__(self, folder: Path, sources: list[RowSource], reader: RecordReader, process: int, num_processes: int):
        self.folder = folder
        self.sources = sources
        self.reader = reader
        self.process, self.num_processes = process, num_processes

    def __iter__(self) -> Iterator[Piece]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        turn, turns = worker * self.num_processes + self.process, num_workers * self.num_processes
        shards = [(number, shard) for number, source in enumerate(self.sources) for shard in range(source.num_shards)]
        whole = len(shards) >= 2 * turns
        part_number = 0
        for number, (source, shard) in enumerate(shards):
            if whole and number % turns != turn:
                continue
            for first, rows in _parts(self.sources[source], shard):
                path = part_path(self.folder, source, shard, first)
                if (whole or part_number % turns == turn) and not path.exists():
                    for row, values in enumerate(rows, first):
                        for kind, content in self._row(RowKey(source, 0, shard, row), values):
                            yield Piece(path, kind, content)
                    yield Piece(path, "end")
                part_number += 1

    def _row(self, key: RowKey, row: Row) -> Iterator[tuple[str, Any]]:
        spec = self.reader.spec
        try:
            opened = self.reader.open(key, row)
        except BadRecord as error:
            yield "row", None
            yield "error", str(error)
            return
        yield "row", opened.facts
        try:
            with bad_records():
                yield from (("sound", piece) for piece in _sound_pieces(spec, opened.sound))
        except BadRecord as error:
            yield "error", str(error)
            return
        for name, pieces in (("image", _image), ("audio_prompt", _prompt), ("video", _video_pieces)):
            if name in opened.media:
                try:
                    with bad_records():
                        yield from ((name, piece) for piece in pieces(spec, opened.media[name], opened.sound))
                except BadRecord as error:
                    yield "broken", (name, str(error))


def _parts(source: RowSource, shard: int) -> Iterator[tuple[int, list[Row]]]:
    """Yield first row and rows of every part of a shard."""
    rows, first = read_shard(source, shard), 0
    while part := list(islice(rows, ROWS)):
        yield first, part
        first += ROWS


def _sound_pieces(spec: WindowSpec, sound: RecordSound) -> Iterator[SoundPiece]:
    """Decode a record in blocks, and cut them into pieces of the length of a window."""
    if sound.seconds <= 0:
        return
    hop, context = spec.hop_length, spec.context_frames
    length = spec.window_samples // hop
    total = spec.encoded_samples(sound.seconds)
    num_frames = total // hop
    block_frames = length * max(1, int(BLOCK_SECONDS // spec.seconds))
    for block in range(0, num_frames, block_frames):
        lowest = max(0, block - context) * hop
        samples = sound.read(lowest, min(total, (block + block_frames + context) * hop))
        for start in range(block, min(block + block_frames, num_frames), length):
            stop = min(start + length, num_frames)
            lower = max(0, start - context)
            upper = total if stop + context >= num_frames else (stop + context) * hop
            end = total if stop == num_frames else stop * hop
            piece = samples[:, lower * hop - lowest : upper - lowest].clone()
            yield SoundPiece(piece, start - lower, stop - lower, end - lower * hop)


def _image(spec: WindowSpec, source: Any, sound: RecordSound) -> Iterator[Pictures]:
    yield decode_image(source, spec)


def _prompt(spec: WindowSpec, source: Any, sound: RecordSound) -> Iterator[torch.Tensor]:
    yield decode_prompt(source, spec)


def _video_pieces(spec: WindowSpec, source: Any, sound: RecordSound) -> Iterator[VideoPiece]:
    """Decode the frames of all windows of a record, as far as the video lasts."""
    last = spec.last_picture(sound.seconds)
    num_frames = last * spec.period_frames + spec.num_frames
    num_segments = last * spec.period_segments + spec.num_sync_segments
    periods = spec.num_frames // spec.period_frames
    if spec.sync_stride:
        periods = min(periods, spec.num_sync_segments // spec.period_segments)
    periods = max(1, periods)
    count = max(1, num_frames // (periods * spec.period_frames))
    for number in range(count):
        final = number == count - 1
        frames, segments = periods * spec.period_frames, periods * spec.period_segments
        if final:
            frames, segments = num_frames - number * frames, num_segments - number * segments
        # One frame more than the segments need tells whether the video goes on after them.
        sync_frames = (segments - 1) * spec.sync_stride + max(spec.sync_segment, spec.sync_stride + 1)
        start = sound.start + float(number * periods * spec.picture_period)
        try:
            pictures = decode_video(source, spec, start, frames, sync_frames)
        except VideoEnded:
            if number == 0:
                raise
            return
        if spec.sync_stride:
            found = len(pictures.sync_frames)
            ended = found <= segments * spec.sync_stride
            if ended:
                # The last segment shows the last frame only, and stands for all that follow.
                segments = ceil((found - 1) / spec.sync_stride) + 1
        else:
            ended = len(pictures.frames) < frames
        yield VideoPiece(pictures, segments)
        if ended:
            return
