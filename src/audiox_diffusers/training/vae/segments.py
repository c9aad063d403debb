"""Audio segments for training a VAE."""

from collections.abc import Sequence

import torch

from ...media import load_audio
from ..data.bad_records import BadRecord, bad_records
from ..data.cells import stored_media
from ..data.seeds import generator_for
from ..data.sources import open_dataset
from ..data.streaming import Row, Unreadable, read_shard
from ..dataset_list import DatasetOptions

HELD_OUT = 10  # one of this many recordings is held out
HELD_OUT_SEGMENTS = 64


def load_recordings(
    names: Sequence[str], sampling_rate: int, channels: int
) -> tuple[list[torch.Tensor], list[dict[str, str | int]]]:
    """
    Decode all recordings of some datasets into memory, in half precision.

    Args:
        names: Datasets. Rows without `audio` are read from the audio track of their `video`.
        sampling_rate, channels: Format to decode to.

    Returns:
        Recordings `[channels, samples]` in order, and `dataset`, `shard`, `row` and `reason` of each skipped row.

    Raises:
        ValueError: A dataset cannot be opened, or has no usable row.
    """
    recordings, skipped = [], []
    for name in names:
        source, before = open_dataset(DatasetOptions(path=name), None).source, len(recordings)
        for shard in range(source.num_shards):
            for number, row in enumerate(read_shard(source, shard)):
                try:
                    with bad_records():
                        recordings.append(_read(row, sampling_rate, channels))
                except BadRecord as error:
                    skipped.append({"dataset": name, "shard": shard, "row": number, "reason": str(error)})
        if len(recordings) == before:
            raise ValueError(f"--dataset {name} has no usable audio; its last row: {skipped[-1]['reason']}")
    return recordings, skipped


def _read(row: Row, sampling_rate: int, channels: int) -> torch.Tensor:
    if isinstance(row, Unreadable):
        raise BadRecord(row.reason)
    media = stored_media(row.get("audio"), "audio") or stored_media(row.get("video"), "video")
    if media is None:
        raise BadRecord("has neither audio nor video")
    waveform, _ = load_audio(media, sampling_rate, channels)
    if not torch.isfinite(waveform).all():
        raise BadRecord("holds NaN or infinite samples")
    if not waveform.any():
        raise BadRecord("is silent")
    return waveform.half()


def hold_out(recordings: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Split recordings into a training set and a held-out set."""
    return [item for index, item in enumerate(recordings) if index % HELD_OUT], recordings[::HELD_OUT]


def draw_segments(recordings: list[torch.Tensor], length: int, count: int, *seeds: int) -> torch.Tensor:
    """
    Draw random segments at random levels of -12 to 0 dB. Short recordings are padded with silence.

    Returns:
        `[count, channels, length]`, float32. The same for the same seeds.
    """
    generator = generator_for(*seeds)
    segments = torch.zeros(count, recordings[0].shape[0], length)
    for segment in segments:
        recording = recordings[int(torch.randint(len(recordings), (), generator=generator))]
        start = int(torch.randint(max(1, recording.shape[1] - length + 1), (), generator=generator))
        piece = recording[:, start : start + length]
        gain = 10 ** (-12 * float(torch.rand((), generator=generator)) / 20)
        segment[:, : piece.shape[1]] = gain * piece.float()
    return segments
