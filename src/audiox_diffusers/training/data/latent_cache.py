"""
A cache of whole records, as latents and embeddings.

Windows are cut out of it when it is read, so that random crops stay random, and a run gets the same crops, tasks and
masks with and without a cache. Layout of the folder:

    cache.json                                              settings of the cache, and whether it is complete
    source-000/shard-00000-row-000000016.json               index of a part: 16 rows of a shard of a dataset
    source-000/shard-00000-row-000000016-000.safetensors    tensors of these rows, in files of about 64 MB

An index has an entry for each row of the dataset, bad ones included. The entry holds the duration, captions and task of
the row, or why it cannot be used. It also lists the tensors of the row, and the files of their chunks, which are about as
long as a window:

    latents       [N, 2 * C]            mean and standard deviation of the VAE's posterior
    peaks         [N]                   loudest sample of each latent frame, to find silent windows
    waveform      [samples, channels]   for models that read a mel spectrogram
    frames        [T, tokens, D]        image embeddings of the video, at the model's frame rate
    lit           [T]                   whether a frame of the video is not black
    sync          [S, tokens, D]        segments of Synchformer; the last one stands for all that follow
    image         [1, tokens, D]        image embeddings of the image
    image_sync    [tokens, D]           a segment of Synchformer of the image
    audio_prompt  [P, 2 * C]            latents of the row's own audio prompt, or its waveform
    text          [tokens, D]           embeddings of each caption without padding, one chunk for each

Records are encoded in pieces, with as much sound around them as the VAE's receptive field covers. So their latents are
those of the whole record up to rounding. The index of a part is written last, and every file appears only when it is
complete. So a build can be killed at any time, and the next one continues it.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ...atomic import replacing
from ..run.lock import locked
from .cache_files import PartWriter
from .cache_pieces import PartPieces
from .cache_reading import CacheReader, CacheSource
from .cache_settings import check_settings
from .cache_writing import write_piece
from .encoding import RecordEncoder
from .loading import load_batches
from .records import RecordReader
from .streaming import RowSource

DESCRIPTION = "cache.json"
VERSION = 2
# A process that has built its share writes this file.
BUILT = ".built-{}"
LEFTOVER = re.compile(r"\.(built-\d+|[0-9a-f]{32}\.(json|safetensors))")


@dataclass
class LatentCache:
    """
    A cache, built or to be built.

    Args:
        folder: Its folder.
        settings: Everything that decides its contents, see [`cache_settings`].
        sources: Datasets to encode.
        reader, encoder: Decode and encode the rows.

    Raises:
        ValueError: The folder holds a cache with other settings, or of an earlier version.
    """

    folder: Path
    settings: dict[str, Any]
    sources: list[RowSource]
    reader: RecordReader
    encoder: RecordEncoder

    def __post_init__(self) -> None:
        path = self.folder / DESCRIPTION
        self.complete = False
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("version") != VERSION:
                raise ValueError(
                    f"--cache_latents {self.folder} has a cache of another version of audiox-diffusers; choose another"
                    " folder, or delete this one"
                )
            settings, complete = found["settings"], found["complete"]
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError):
            raise ValueError(
                f"--cache_latents {self.folder}: {DESCRIPTION} is damaged; choose another folder, or delete this one"
            ) from None
        check_settings(self.folder, settings, self.settings)
        self.complete = complete

    def read(self) -> tuple[list[CacheSource], CacheReader]:
        """Return a source of cached rows for each dataset, and their reader."""
        sources = [
            CacheSource(self.folder, number, source.name, source.num_shards)
            for number, source in enumerate(self.sources)
        ]
        return sources, CacheReader(self.reader, self.encoder)

    def build(self, num_workers: int, accelerator: Accelerator) -> None:
        """
        Encode all rows, or those that an interrupted build left. The processes divide the shards among themselves.

        Args:
            num_workers: Number of processes that decode, for each process of the run.
            accelerator: Accelerator of the run. All its processes call this, and see the same folder.

        Raises:
            ValueError: Another run is building this cache, or the processes do not share the folder.
        """
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder, "--cache_latents"):
                self._remove_leftovers()
                for number in range(len(self.sources)):
                    (self.folder / f"source-{number:03}").mkdir(exist_ok=True)
                self._describe(complete=False)
                accelerator.wait_for_everyone()
                self._build_share(num_workers, accelerator)
                self._describe(complete=True)
                for process in range(accelerator.num_processes):
                    (self.folder / BUILT.format(process)).unlink()
        else:
            accelerator.wait_for_everyone()
            if not (self.folder / DESCRIPTION).exists():
                raise ValueError(f"--cache_latents {self.folder} must be a folder that all processes of the run share")
            self._build_share(num_workers, accelerator)
        accelerator.wait_for_everyone()
        self.complete = True

    def _remove_leftovers(self) -> None:
        """Remove what a killed build left: its temporary files, and the files of processes that had finished."""
        for folder in (self.folder, *self.folder.glob("source-*")):
            for path in folder.glob(".*"):
                if LEFTOVER.fullmatch(path.name):
                    path.unlink()

    def _build_share(self, num_workers: int, accelerator: Accelerator) -> None:
        process, num_processes = accelerator.process_index, accelerator.num_processes
        pieces = PartPieces(self.folder, self.sources, self.reader, process, num_processes)
        parts: dict[Path, PartWriter] = {}
        with tqdm(desc="encoding", unit="record", disable=not accelerator.is_local_main_process) as progress:
            for piece in load_batches(pieces, num_workers):
                if piece.kind == "end":
                    writer = parts.pop(piece.part)
                    writer.finish()
                    progress.update(len(writer.entries))
                else:
                    writer = parts.setdefault(piece.part, PartWriter(piece.part))
                    write_piece(piece, writer, self.encoder)
        (self.folder / BUILT.format(process)).touch()
        # Not a collective operation, which times out if another process has much more to encode.
        while not all((self.folder / BUILT.format(other)).exists() for other in range(num_processes)):
            time.sleep(0.2)
        accelerator.wait_for_everyone()

    def _describe(self, complete: bool) -> None:
        value = {"version": VERSION, "settings": self.settings, "complete": complete}
        with replacing(self.folder / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
