"""Folders that mix sounds, videos and images."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refused
from PIL import Image
from small_window import SMALL_WINDOW

from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.training.arguments import COLUMNS, MaskingConfig
from audiox_diffusers.training.data.records import RecordReader
from audiox_diffusers.training.data.sources import DatasetSource
from audiox_diffusers.training.data.streaming import RowKey, Unreadable


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("media")
    tone = 0.5 * np.sin(np.arange(8000, dtype=np.float32))
    save_audio(folder / "sound.wav", tone, 8000)
    save_video(folder / "video.mp4", np.full((10, 32, 32, 3), 200, np.uint8), tone, 8000, fps=10)
    Image.new("RGB", (32, 32), "red").save(folder / "image.png")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def make(tmp_path, media):
    """Return `make(*files)`, which writes a folder with these files."""

    def write(*files: str) -> Path:
        for name in files:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            suffix = {".webm": ".mp4", ".mkv": ".mp4", ".m4a": ".wav"}.get(path.suffix, path.suffix)
            path.write_bytes(media[suffix])
        return tmp_path / "data"

    return write


def rows_of(source: DatasetSource) -> list[dict]:
    return [row for shard in range(source.num_shards) for row in source.rows(shard)]


def kinds(source: DatasetSource) -> list[str]:
    """Return the media columns of each row, joined by `+`."""
    return ["+".join(name for name in ("audio", "video", "image") if row.get(name)) for row in rows_of(source)]


def write_metadata(folder: Path, rows: list[dict], suffix: str = ".jsonl") -> None:
    path = folder / f"metadata{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize(
    "files",
    [
        ["0.wav", "1.mp4"],
        ["0.wav", "1.wav", "2.mp4"],
        ["0.mp4", "1.mp4", "2.wav"],
        ["0.webm", "1.webm", "2.webm"],
        ["0.m4a", "1.mkv", "2.MP4"],
    ],
    ids=" ".join,
)
def test_metadata(make, files, suffix):
    folder = make(*[name.lower() for name in files])
    for name in files:
        (folder / name.lower()).rename(folder / name)
    write_metadata(folder, [{"file_name": name, "caption": name} for name in files], suffix)
    source = DatasetSource(str(folder))
    assert kinds(source) == ["audio" if name.endswith(("wav", "m4a")) else "video" for name in files]
    assert [row["caption"] for row in rows_of(source)] == files
    assert set(source.columns) == {*kinds(source), "caption"}


def test_videos_keep_their_pictures(make):
    folder = make("0.wav", "1.mp4")
    write_metadata(folder, [{"file_name": "0.wav"}, {"file_name": "1.mp4"}])
    source = DatasetSource(str(folder))
    columns = {name: name for name in COLUMNS if name in source.columns}
    masking = MaskingConfig(task_weights={"video": 1, "inpainting": 1e-9}, drop_video_rate=0.0)
    reader = RecordReader(SMALL_WINDOW, [columns], masking, "start", 0.5, 0)
    sound, video = [reader.read(RowKey(0, 0, 0, n), row) for n, row in enumerate(rows_of(source))]
    assert sound.video is None and video.video.frames.float().mean().item() == pytest.approx(200, abs=5)
    assert "video" not in sound.choice.available and "video" in video.choice.available


@pytest.mark.parametrize("files", [["a.wav", "b.mp4"], ["a.mp4", "b.mp4", "c.wav"], ["x/a.m4a", "x/y/b.webm"]])
def test_no_metadata(make, files):
    source = DatasetSource(str(make(*files, "cover.png", ".hidden.wav")))
    assert kinds(source) == ["audio" if name.endswith(("wav", "m4a")) else "video" for name in files]
    assert [list(row.values())[0] for row in source.rows(0, 1)] == [
        str(Path(source.name) / name) for name in files[1:]
    ]


def test_metadata_in_subfolders(make):
    """Paths are relative to the metadata file, and the files may have different columns."""
    folder = make("a/0.wav", "a/b/1.mp4", "c/2.mkv")
    write_metadata(folder / "a", [{"file_name": "0.wav"}, {"file_name": "b/1.mp4"}])
    write_metadata(folder / "c", [{"caption": "two", "file_name": "2.mkv"}], ".csv")
    source = DatasetSource(str(folder))
    assert source.num_shards == 2 and set(source.columns) == {"audio", "video", "caption"}
    assert rows_of(source) == [
        {"audio": str(folder / "a/0.wav")},
        {"video": str(folder / "a/b/1.mp4")},
        {"caption": "two", "video": str(folder / "c/2.mkv")},
    ]
    assert list(source.rows(0, 1)) == rows_of(source)[1:2]


def test_the_order_of_columns_does_not_matter(make):
    folder = make("a.wav", "b.wav", "c.png", "d.mp4")
    row = {"image_file_name": "c.png", "audio_prompt_file_name": "a.wav", "caption": "x", "file_name": "b.wav"}
    write_metadata(folder, [row, {**row, "image_file_name": None, "file_name": "d.mp4"}])
    first, second = rows_of(DatasetSource(str(folder)))
    names = {"image": "c.png", "audio_prompt": "a.wav", "audio": "b.wav"}
    assert first == {**{name: str(folder / file) for name, file in names.items()}, "caption": "x"}
    assert second == {"audio_prompt": str(folder / "a.wav"), "caption": "x", "video": str(folder / "d.mp4")}


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.wav", "a/../../outside.wav", "file:///etc/hostname"])
def test_paths_that_leave_the_folder(make, name):
    """Such a row is unreadable, and the rows after it are read."""
    folder = make("a.wav")
    write_metadata(folder, [{"file_name": "a.wav"}, {"file_name": name}, {"file_name": "a.wav"}])
    first, bad, last = rows_of(DatasetSource(str(folder)))
    assert first == last == {"audio": str(folder / "a.wav")}
    assert isinstance(bad, Unreadable) and "must be a path inside of the folder" in bad.reason


def test_splits_are_subfolders(make):
    folder = make("train/a.wav", "validation/b.mp4", "test.wav")
    assert rows_of(DatasetSource(str(folder))) == [{"audio": str(folder / "train/a.wav")}]
    assert rows_of(DatasetSource(str(folder), split="validation")) == [{"video": str(folder / "validation/b.mp4")}]
    with refused("--dataset", "no subfolder test"):
        DatasetSource(str(folder), split="test")


def test_metadata_without_file_names(make):
    folder = make("a.wav")
    write_metadata(folder, [{"path": "a.wav", "caption": "x"}])
    with refused("--dataset", "metadata.jsonl needs a column file_name, got path, caption"):
        DatasetSource(str(folder))


def test_archives(make, tmp_path):
    folder = make("a.wav", "b.mp4")
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "media.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
        archive.writestr("metadata.jsonl", '{"file_name": "a.wav"}\n{"file_name": "b.mp4"}\n')
    source = DatasetSource(str(tmp_path / "zipped"))
    assert kinds(source) == ["audio", "video"] and set(source.columns) == {"audio", "video"}
