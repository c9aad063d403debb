"""Rows of a dataset -> decoded windows: sound, frames and captions of the same seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import torch
import torch.nn.functional as F

from ...media import MediaBytes, MediaError, load_audio, load_image, load_video, media_duration, resize_frames
from ...pipelines import AudioXPipeline
from .masking import MaskingConfig, TaskSpec, draw_task_spec
from .seeds import generator_for
from .streaming import BrokenShard, RowKey

COLUMNS = ("audio", "video", "image", "caption", "audio_prompt", "task", "start", "end")

# Peaks below -60 dB of full scale count as silence.
SILENCE = 1e-3


class BadRecord(ValueError):
    """A row that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class WindowSpec:
    """
    What a model sees of a record.

    Attributes:
        sampling_rate, channels: of the sound.
        num_samples: samples that are encoded, at least those of a window of latents and of an audio prompt.
        prompt_samples: samples of an audio prompt.
        seconds: length of a window of latents.
        video_fps, num_frames, frame_size: frames for the image encoder.
        sync_fps, num_sync_frames, sync_size: frames for Synchformer; 0 frames for models without.
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
        """The window of a pipeline's components."""
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
    A video, or a still picture as one frame, decoded for the encoders: uint8 `[T, 3, S, S]`; `sync_frames` is `None`
    for models without Synchformer.
    """

    frames: torch.Tensor
    sync_frames: torch.Tensor | None


@dataclass
class Record:
    """
    What one window of a row holds.

    Attributes:
        key: of the row.
        task_spec: what it is trained on.
        available: what the row has to draw a task spec from, see [`draw_task_spec`].
        task: the one that the row asks for.
        waveform: `[channels, num_samples]`, silence after its end.
        captions: those of these seconds, or the one that the task spec chose.
        video, image: as far as they are there and wanted.
        previous: `[channels, prompt_samples]`, the sound before, for completion.
        broken: what is there but could not be decoded, and why.
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


class RecordReader:
    """
    Decodes rows.

    Args:
        spec: what the model sees.
        columns: of every dataset, its name for each of `COLUMNS` that it has; a dot leads into a column, as in
            `json.caption`.
        masking: how tasks are drawn.
        crop: `"random"` places the window anywhere in the record, anew in every epoch, `"start"` at its start.
        min_seconds: shorter records are refused.
        seed: of the crops and the task specs.
    """

    def __init__(
        self,
        spec: WindowSpec,
        columns: Sequence[Mapping[str, str]],
        masking: MaskingConfig,
        crop: str,
        min_seconds: float,
        seed: int,
    ):
        self.spec = spec
        self.columns = columns
        self.masking = masking
        self.crop = crop
        self.min_seconds = min_seconds
        self.seed = seed

    def read(self, key: RowKey, row: Mapping[str, Any] | BrokenShard, everything: bool = False) -> Record:
        """
        Decode what the task spec of a row needs, or `everything` that a later task spec may need.

        Raises:
            BadRecord: the row cannot be trained on.
        """
        if isinstance(row, BrokenShard):
            raise BadRecord(row.reason)
        try:
            return self._read(key, self._named(key.source, row), everything)
        except (MediaError, OSError) as error:
            raise BadRecord(str(error)) from error

    def _read(self, key: RowKey, row: Mapping[str, Any], everything: bool) -> Record:
        video, image = self._media(row, "video"), self._media(row, "image")
        sound = self._media(row, "audio") or video
        if sound is None:
            raise BadRecord("has neither audio nor video")
        first, last = self._segment(row, sound)
        offset = self._offset(key, first, last)
        seconds = min(self.spec.num_samples / self.spec.sampling_rate, last - offset)

        captions = self._captions(row, offset, offset + seconds)
        prompt = self._media(row, "audio_prompt")
        there = {
            "caption": bool(captions),
            "video": video is not None,
            "image": image is not None,
            "previous": prompt is not None or offset - first >= self.min_seconds,
        }
        available = frozenset(name for name in there if there[name])
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
        for name, decode in decoders.items():
            if everything and there[name]:
                try:
                    setattr(record, name, decode())
                except (MediaError, OSError, BadRecord) as error:
                    record.broken[name] = str(error)
            elif name in needs(task_spec):
                setattr(record, name, decode())
        return record

    def task_spec(self, key: RowKey, available: frozenset[str], task: Any = None) -> TaskSpec:
        """What a row that has `available` is trained on."""
        try:
            return draw_task_spec(self.masking, available, generator_for(self.seed, "plan", *key), task)
        except ValueError as error:
            raise BadRecord(str(error)) from None

    def _named(self, source: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the row has in the columns that are used, by the names of `COLUMNS`."""
        named = {}
        for name, column in self.columns[source].items():
            value = row
            for part in column.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            named[name] = value
        return named

    @staticmethod
    def _media(row: Mapping[str, Any], name: str) -> str | MediaBytes | None:
        return stored_media(row.get(name), name)

    def _segment(self, row: Mapping[str, Any], sound: str | MediaBytes) -> tuple[float, float]:
        """From which second to which the record lasts."""
        duration = media_duration(sound)
        first = self._seconds(row.get("start"), "start", 0.0)
        last = min(self._seconds(row.get("end"), "end", duration), duration)
        if last - first < self.min_seconds:
            raise BadRecord(f"is too short: {max(0.0, last - first):.2f} s, needs {self.min_seconds:g} s")
        return first, last

    @staticmethod
    def _seconds(value: Any, name: str, default: float) -> float:
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise BadRecord(f"`{name}` must be seconds, 0 or more, got {value!r}")
        return float(value)

    def _offset(self, key: RowKey, first: float, last: float) -> float:
        spare = last - first - self.spec.seconds
        if self.crop == "start" or spare <= 0:
            return first
        return first + spare * torch.rand((), generator=generator_for(self.seed, "crop", *key)).item()

    def _captions(self, row: Mapping[str, Any], start: float, end: float) -> list[str]:
        """All captions, or those of the windows of time that share some of these seconds."""
        value = row.get("caption")
        captions = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                if self._seconds(item.get("start"), "caption.start", 0.0) >= end:
                    continue
                if self._seconds(item.get("end"), "caption.end", end) <= start:
                    continue
                item = item.get("caption")
            if item is None:
                continue
            if not isinstance(item, str):
                raise BadRecord(f"`caption` must be text, got {type(item).__name__}: {item!r}")
            if item.strip():
                captions.append(item)
        return captions

    def _sound(self, sound: str | MediaBytes, start: float, seconds: float, num_samples: int) -> torch.Tensor:
        rate, channels = self.spec.sampling_rate, self.spec.channels
        waveform, _ = load_audio(sound, rate, channels, start=start, duration=seconds)
        if not torch.isfinite(waveform).all():
            raise BadRecord("holds NaN or infinite samples")
        waveform = waveform[:, :num_samples]
        return F.pad(waveform, (0, num_samples - waveform.shape[1]))

    def _previous(
        self, sound: str | MediaBytes, prompt: str | MediaBytes | None, first: float, offset: float
    ) -> torch.Tensor:
        """The audio prompt of the row, or the seconds before the window, which end where the prompt ends."""
        length = self.spec.prompt_samples / self.spec.sampling_rate
        if prompt is not None:
            return self._sound(prompt, 0.0, length, self.spec.prompt_samples)
        start = max(first, offset - length)
        waveform = self._sound(sound, start, offset - start, self.spec.prompt_samples)
        return waveform.roll(self.spec.prompt_samples - round((offset - start) * self.spec.sampling_rate), dims=1)

    def _frames(self, video: str | MediaBytes, start: float) -> Pictures:
        spec = self.spec

        def load(fps: float, num_frames: int, size: int, fit: str) -> torch.Tensor:
            return as_bytes(load_video(video, fps, start, num_frames / fps, (size, size), fit))

        frames = load(spec.video_fps, spec.num_frames, spec.frame_size, "stretch")
        if not frames.any():
            raise BadRecord("its picture is black throughout")
        sync_frames = None
        if spec.num_sync_frames:
            sync_frames = load(spec.sync_fps, spec.num_sync_frames, spec.sync_size, "crop")
        return Pictures(frames, sync_frames)

    def _picture(self, image: str | MediaBytes) -> Pictures:
        spec, picture = self.spec, load_image(image)[None]
        frames = as_bytes(resize_frames(picture, (spec.frame_size,) * 2))
        sync_frames = None
        if spec.num_sync_frames:
            sync_frames = as_bytes(resize_frames(picture, (spec.sync_size,) * 2, "crop"))
        return Pictures(frames, sync_frames)


def stored_media(value: Any, name: str) -> str | MediaBytes | None:
    """
    What a reader of media takes, from what a dataset holds.

    Args:
        value: a path, the bytes of a file, `{"path": ..., "bytes": ...}`, or `None`.
        name: of the column.

    Raises:
        BadRecord: it is none of these.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return MediaBytes(value, name)
    if not isinstance(value, Mapping) or not {"bytes", "path"} & set(value):
        raise BadRecord(f"`{name}` holds no media but {type(value).__name__}")
    path, data = value.get("path"), value.get("bytes")
    if not isinstance(path, str | None) or not isinstance(data, bytes | None):
        raise BadRecord(f"`{name}` must have a path that is text or bytes, got {type(path or data).__name__}")
    if data is None and path is not None and "://" in path:
        try:
            with fsspec.open(path, "rb") as file:
                data = file.read()
        except Exception as error:  # what is raised depends on the file system
            raise BadRecord(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    return path if data is None else MediaBytes(data, path or name)


def needs(task_spec: TaskSpec) -> set[str]:
    """What has to be decoded for a task spec, beside sound and text."""
    wanted = {"video": task_spec.video, "image": task_spec.image, "previous": task_spec.audio == "previous"}
    return {name for name in wanted if wanted[name]}


def as_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Frames in 0..1 -> uint8: a quarter of the memory on the way from the workers."""
    return (frames * 255).round().to(torch.uint8)
