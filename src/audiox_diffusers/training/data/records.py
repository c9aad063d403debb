"""Rows of a dataset, decoded into windows: sound, frames and captions of the same seconds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import torch
import torch.nn.functional as F

from ...media import FrameSpec, MediaBytes, load_audio, load_frames, load_image, media_duration, resize_frames
from ...messages import first_line
from ...pipelines import AudioXPipeline
from ..arguments import MaskingConfig
from .masking import TaskSpec, draw_task_spec
from .seeds import generator_for
from .streaming import Row, RowKey, Unreadable

# Peaks below -60 dB of full scale count as silence.
SILENCE = 1e-3

# Largest remote file, which is read into memory.
MAX_REMOTE_BYTES = 2**30

Media = str | MediaBytes


class BadRecord(ValueError):
    """A row that cannot be trained on. The message says why."""


@contextmanager
def bad_records() -> Iterator[None]:
    """Raise every error inside as a `BadRecord`: decoders raise errors of any type for a damaged file."""
    try:
        yield
    except BadRecord:
        raise
    except Exception as error:
        raise BadRecord(first_line(error)) from error


@dataclass(frozen=True)
class WindowSpec:
    """
    The part of a record that a model sees.

    Attributes:
        sampling_rate, channels: Format of the waveform; the rate in Hz.
        num_samples: Samples to encode. They cover a window of latents and an audio prompt.
        prompt_samples: Samples of an audio prompt.
        seconds: Duration of a window of latents.
        video_fps, num_frames, frame_size: Frames for the image encoder; the size in pixels.
        sync_fps, num_sync_frames, sync_size: Frames for Synchformer; 0 for models without it.
    """

    sampling_rate: int
    channels: int
    num_samples: int
    prompt_samples: int
    seconds: float
    video_fps: float
    num_frames: int
    frame_size: int
    sync_fps: float
    num_sync_frames: int
    sync_size: int

    @classmethod
    def of(cls, pipe: AudioXPipeline) -> "WindowSpec":
        """Return the window of a pipeline's models."""
        vae, conditioner = pipe.vae.config, pipe.conditioner.config
        sync = None if pipe.sync_encoder is None else pipe.sync_encoder.config
        return cls(
            sampling_rate=vae.sampling_rate,
            channels=vae.audio_channels,
            num_samples=max(pipe.window_samples, conditioner.audio_prompt_samples),
            prompt_samples=conditioner.audio_prompt_samples,
            seconds=pipe.window_samples / vae.sampling_rate,
            video_fps=conditioner.video_fps,
            num_frames=conditioner.num_video_frames,
            frame_size=pipe.image_encoder.config.image_size,
            sync_fps=0.0 if sync is None else sync.video_fps,
            num_sync_frames=0 if sync is None else pipe.num_sync_frames,
            sync_size=0 if sync is None else sync.image_size,
        )


@dataclass
class Pictures:
    """
    Decoded frames of a video, or a still image as one frame.

    Attributes:
        frames: For the image encoder, uint8 `[T, 3, S, S]`.
        sync_frames: For Synchformer, uint8 `[T, 3, S, S]`; `None` for models without it.
    """

    frames: torch.Tensor
    sync_frames: torch.Tensor | None


@dataclass
class Record:
    """
    One decoded window of a row.

    Attributes:
        key: Key of the row.
        task_spec: What the record is trained on.
        available: Modalities of the row, see [`draw_task_spec`].
        task: Task that the row names.
        waveform: `[channels, num_samples]`, padded with silence.
        captions: Captions of the window, or the one that the task spec chose.
        video, image: Pictures, if the task spec needs them.
        previous: `[channels, prompt_samples]`, the sound before the window.
        broken: Modalities that could not be decoded, and why.
    """

    key: RowKey
    task_spec: TaskSpec
    available: frozenset[str]
    task: str | None
    waveform: torch.Tensor
    captions: list[str] = field(default_factory=list)
    video: Pictures | None = None
    image: Pictures | None = None
    previous: torch.Tensor | None = None
    broken: dict[str, str] = field(default_factory=dict)


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
        crop: Where the window lies in a longer record: `"random"`, different in every epoch, or `"start"`.
        min_seconds: Shorter records are bad records.
        seed: Seed of the crops and task specs.
    """

    spec: WindowSpec
    columns: Sequence[Mapping[str, str]]
    masking: MaskingConfig
    crop: str
    min_seconds: float
    seed: int
    tasks: Sequence[Mapping[str, float] | None] = ()

    def read(self, key: RowKey, row: Row, everything: bool = False) -> Record:
        """
        Decode what the row's task spec needs, or with `everything` all that any task spec may need.

        Raises:
            BadRecord: The row cannot be trained on.
        """
        if isinstance(row, Unreadable):
            raise BadRecord(row.reason)
        with bad_records():
            return self._read(key, self._rename(key.source, row), everything)

    def _read(self, key: RowKey, row: Mapping[str, Any], everything: bool) -> Record:
        video, image, prompt = (stored_media(row.get(name), name) for name in ("video", "image", "audio_prompt"))
        sound = stored_media(row.get("audio"), "audio") or video
        if sound is None:
            raise BadRecord("has neither audio nor video")
        first, last = self._segment(row, sound)
        offset = self._offset(key, first, last)
        seconds = min(self.spec.num_samples / self.spec.sampling_rate, last - offset)

        captions = find_captions(row.get("caption"), offset, offset + seconds)
        given = {
            "caption": bool(captions),
            "video": video is not None,
            "image": image is not None,
            "previous": prompt is not None or offset - first >= self.min_seconds,
        }
        available = frozenset(name for name in given if given[name])
        task = row.get("task")
        task_spec = self.task_spec(key, available, task)

        waveform = self._sound(sound, offset, seconds, self.spec.num_samples)
        if waveform.abs().max() < SILENCE:
            raise BadRecord("is silent")
        record = Record(key, task_spec, available, task, waveform)
        if everything:
            record.captions = captions
        elif task_spec.text:
            record.captions = [captions[int(task_spec.caption * len(captions))]]
        decoders = {
            "video": lambda: self._frames(video, offset),
            "image": lambda: self._picture(image),
            "previous": lambda: self._previous(sound, prompt, first, offset),
        }
        wanted = available if everything else needs(task_spec)
        for name in sorted(decoders.keys() & wanted):
            try:
                with bad_records():
                    setattr(record, name, decoders[name]())
            except BadRecord as error:
                if not everything:
                    raise
                record.broken[name] = first_line(error)
        return record

    def task_spec(self, key: RowKey, available: frozenset[str], task: Any = None) -> TaskSpec:
        """Draw the task spec of a row. Raise `BadRecord` if there is none for `available` or `task`."""
        own = self.tasks[key.source] if self.tasks else None
        masking = self.masking if own is None else replace(self.masking, task_weights=dict(own))
        with bad_records():
            return draw_task_spec(masking, available, generator_for(self.seed, "plan", *key), task)

    def _rename(self, source: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the row under the names of `COLUMNS`."""
        named = {}
        for name, column in self.columns[source].items():
            value = row
            for part in column.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            named[name] = value
        return named

    def _segment(self, row: Mapping[str, Any], sound: Media) -> tuple[float, float]:
        """Return start and end of the record in seconds of its file."""
        duration = media_duration(sound)
        first = check_seconds(row.get("start"), "start", 0.0)
        last = min(check_seconds(row.get("end"), "end", duration), duration)
        if last - first < self.min_seconds:
            raise BadRecord(f"is too short: {max(0.0, last - first):.2f} s, needs {self.min_seconds:g} s")
        return first, last

    def _offset(self, key: RowKey, first: float, last: float) -> float:
        spare = last - first - self.spec.seconds
        if self.crop == "start" or spare <= 0:
            return first
        return first + spare * torch.rand((), generator=generator_for(self.seed, "crop", *key)).item()

    def _sound(self, sound: Media, start: float, seconds: float, num_samples: int) -> torch.Tensor:
        rate, channels = self.spec.sampling_rate, self.spec.channels
        waveform, _ = load_audio(sound, rate, channels, start=start, duration=seconds)
        if not torch.isfinite(waveform).all():
            raise BadRecord("holds NaN or infinite samples")
        waveform = waveform[:, :num_samples]
        return F.pad(waveform, (0, num_samples - waveform.shape[1]))

    def _previous(self, sound: Media, prompt: Media | None, first: float, offset: float) -> torch.Tensor:
        """Return the row's audio prompt, or else the sound before the window, aligned to the end of the prompt."""
        length = self.spec.prompt_samples / self.spec.sampling_rate
        if prompt is not None:
            return self._sound(prompt, 0.0, length, self.spec.prompt_samples)
        start = max(first, offset - length)
        waveform = self._sound(sound, start, offset - start, self.spec.prompt_samples)
        return waveform.roll(self.spec.prompt_samples - round((offset - start) * self.spec.sampling_rate), dims=1)

    def _frames(self, video: Media, start: float) -> Pictures:
        spec = self.spec
        wanted = [FrameSpec(spec.video_fps, spec.num_frames, (spec.frame_size,) * 2)]
        if spec.num_sync_frames:
            wanted.append(FrameSpec(spec.sync_fps, spec.num_sync_frames, (spec.sync_size,) * 2, "crop"))
        frames, *sync_frames = load_frames(video, wanted, start)
        if not frames.any():
            raise BadRecord("its video is black throughout")
        return Pictures(frames, *(sync_frames or [None]))

    def _picture(self, image: Media) -> Pictures:
        spec, picture = self.spec, load_image(image)[None]
        frames = as_bytes(resize_frames(picture, (spec.frame_size,) * 2))
        sync_frames = None
        if spec.num_sync_frames:
            sync_frames = as_bytes(resize_frames(picture, (spec.sync_size,) * 2, "crop"))
        return Pictures(frames, sync_frames)


def stored_media(value: Any, name: str) -> Media | None:
    """
    Convert a cell of a dataset to a source for the readers of `audiox_diffusers.media`.

    Args:
        value: A path, the bytes of a file, `{"path": ..., "bytes": ...}`, or `None`.
        name: Name of the column.

    Raises:
        BadRecord: `value` is none of these, or a remote file that cannot be read.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return MediaBytes(value, name)
    if not isinstance(value, Mapping) or not {"bytes", "path"} & set(value):
        raise BadRecord(f"`{name}` must be a path or bytes, got {type(value).__name__}")
    path, data = value.get("path"), value.get("bytes")
    if not isinstance(path, str | None) or not isinstance(data, bytes | None):
        raise BadRecord(f"`{name}` must have a path that is text or bytes, got {type(path or data).__name__}")
    if data is None and path is not None and "://" in path:
        try:
            with fsspec.open(path, "rb") as file:
                data = file.read(MAX_REMOTE_BYTES + 1)
        except Exception as error:  # the type depends on the file system
            raise BadRecord(f"{path}: cannot be read ({type(error).__name__}: {first_line(error)})") from error
        if len(data) > MAX_REMOTE_BYTES:
            raise BadRecord(f"{path}: is larger than {MAX_REMOTE_BYTES} bytes")
    return path if data is None else MediaBytes(data, path or name)


def find_captions(value: Any, start: float, end: float) -> list[str]:
    """
    Return the captions of a window.

    Args:
        value: A caption, a list of them, or `None`. A caption is text, or `{"start": ..., "end": ..., "caption": ...}`.
        start, end: Seconds of the window. Captions of other seconds are left out.

    Raises:
        BadRecord: A caption is not text, or its seconds are not numbers.
    """
    captions = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Mapping):
            if check_seconds(item.get("start"), "caption.start", 0.0) >= end:
                continue
            if check_seconds(item.get("end"), "caption.end", end) <= start:
                continue
            item = item.get("caption")
        if item is None:
            continue
        if not isinstance(item, str):
            raise BadRecord(f"`caption` must be text, got {type(item).__name__}: {item!r}")
        try:
            item.encode()
        except UnicodeEncodeError:
            raise BadRecord(f"`caption` must be valid Unicode, got {item!r}") from None
        if item.strip():
            captions.append(item)
    return captions


def check_seconds(value: Any, name: str, default: float) -> float:
    """Return `value` as seconds, `default` for `None`. Raise `BadRecord` naming the column if it is not a number."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise BadRecord(f"`{name}` must be seconds, 0 or more, got {value!r}")
    return float(value)


def needs(task_spec: TaskSpec) -> set[str]:
    """Return the modalities that a task spec needs decoded, other than sound and text."""
    wanted = {"video": task_spec.video, "image": task_spec.image, "previous": task_spec.audio == "previous"}
    return {name for name in wanted if wanted[name]}


def as_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Convert frames from 0..1 to uint8, which takes a quarter of the memory between processes."""
    return (frames * 255).round().to(torch.uint8)
