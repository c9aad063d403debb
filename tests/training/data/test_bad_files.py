"""Damaged files of many kinds: each is one skipped record, and the records around it are used."""

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from small_window import SMALL_WINDOW

from audiox_diffusers.media import save_audio
from audiox_diffusers.training.data import cells
from audiox_diffusers.training.data.bad_records import BadRecord
from audiox_diffusers.training.data.masking import MaskingConfig
from audiox_diffusers.training.data.records import RecordReader
from audiox_diffusers.training.data.streaming import RowKey

COLUMNS = {name: name for name in ("audio", "image", "video", "caption")}
FORMATS = ("avif", "bmp", "gif", "jpeg", "png", "tiff", "webp")


def picture(form: str, seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def huge_png() -> bytes:
    """A PNG that declares 60000 x 60000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


BAD_FILES = {
    "cut.avif": picture("avif")[:150],
    "cut.png": picture("png")[:200],
    "cut.jpg": picture("jpeg")[:300],
    "cut.webp": picture("webp")[:100],
    "huge.png": huge_png(),
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nstop\n",
    "playlist.m3u8": b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n",
    "text.txt": b"not a picture",
    "header.mp4": struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 512) + struct.pack(">I4s", 2**31, b"moov"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    save_audio(path, 0.5 * np.sin(np.arange(8000, dtype=np.float32)), 8000)
    return str(path)


def read(row: dict, task: str):
    masking = MaskingConfig(task_weights={task: 1.0}, drop_video_rate=0.0)
    return RecordReader(SMALL_WINDOW, [COLUMNS], masking, "start", 0.5, 0).read(RowKey(0, 0, 0, 0), row)


@pytest.mark.parametrize("task", ["image", "video"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_pictures(sound, tmp_path, name, task):
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name])
    for stored in (str(path), {"path": name, "bytes": BAD_FILES[name]}):
        with pytest.raises(BadRecord):
            read({"audio": sound, task: stored}, task)


def test_remote_files_have_a_limit(sound, monkeypatch):
    """Remote files are read into memory."""
    fsspec.filesystem("memory").pipe("sound.wav", Path(sound).read_bytes())
    row = {"audio": {"path": "memory://sound.wav", "bytes": None}}
    assert read(row, "inpainting").waveform.any()
    monkeypatch.setattr(cells, "MAX_REMOTE_BYTES", 1000)
    with pytest.raises(BadRecord, match="memory://sound.wav: is larger than 1000 bytes"):
        read(row, "inpainting")


@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bytes(sound, form):
    """A picture with flipped bytes is read or is a bad record."""
    generator = np.random.default_rng(1)
    for seed in range(20):
        data = bytearray(picture(form, seed))
        for place in generator.integers(0, len(data), 6):
            data[place] ^= int(generator.integers(1, 256))
        with contextlib.suppress(BadRecord):
            record = read({"audio": sound, "image": bytes(data)}, "image")
            assert record.image.frames.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_a_run_skips_bad_records(train, scenes, tmp_path, cached):
    """Both passes over the data skip the same records, and the reasons are listed."""
    for name, data in BAD_FILES.items():
        (tmp_path / name).write_bytes(data)
    good = [{"video": str(path), "image": None} for path in sorted(Path(scenes).glob("*.mp4"))[:4]]
    bad = [{**good[0], "image": str(tmp_path / name), "task": "image"} for name in BAD_FILES]
    bad += [{"video": str(tmp_path / name), "image": None} for name in BAD_FILES]
    rows = [row for number, row in enumerate(bad) for row in (row, good[number % 4])]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"task": None, **row}) + "\n" for row in rows))
    options = ["--dataset", tmp_path / "data.jsonl", "--shuffle_buffer_size", 1, "--train_batch_size", 4]
    options += ["--drop_video_rate", 0, "--max_bad_records", 2, "--caption_column", "none"]
    losses = train("out", 9, *options, *(["--cache_latents", tmp_path / "cache"] if cached else []))
    assert len(losses) == 9
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["row"] for line in skipped if line["epoch"] == 0] == list(range(0, len(rows), 2))
    assert all(line["reason"] for line in skipped)
