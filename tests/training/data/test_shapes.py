"""Every shape of dataset that docs/training.md lists, with two records: the columns, the captions and the pictures."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict
from helpers import refused
from small_window import SMALL_WINDOW

from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.training import parse_args
from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data.first_look import check_look, look
from audiox_diffusers.training.data.records import RecordReader
from audiox_diffusers.training.data.sources import MixedDataset, open_datasets
from audiox_diffusers.training.data.streaming import RowKey, Unreadable

CAPTIONS = ["a low hum", "a high beep"]
NEEDED = ["--pretrained_model_name_or_path", "model", "--output_dir", "out", "--max_train_steps", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with two sounds and two videos of a second, and a longer sound."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(2):
        tone = 0.5 * np.sin(np.arange(8000, dtype=np.float32) * (number + 1) / 20)
        save_audio(folder / f"{number}.wav", tone, 8000)
        save_audio(folder / f"{number}.flac", tone, 8000)
        save_video(folder / f"{number}.mp4", np.full((10, 32, 32, 3), 200, np.uint8), tone, 8000, fps=10)
    save_audio(folder / "long.wav", 0.5 * np.sin(np.arange(32000, dtype=np.float32) / 20), 8000)
    return folder


def table(path: Path, header: list[str] | None, *rows: tuple) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows if header is None else [header, *rows])


def lines(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def copy(files: Path, folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        shutil.copy(files / f"{number}{Path(name).suffix}", folder / name)


def folder_with(column: str, suffix: str) -> Callable:
    def write(files: Path, root: Path) -> str:
        copy(files, root, "a.wav", "b.wav")
        rows = [{"file_name": name, column: text} for name, text in zip(("a.wav", "b.wav"), CAPTIONS, strict=True)]
        if suffix == "csv":
            table(root / "metadata.csv", ["file_name", column], *(tuple(row.values()) for row in rows))
        else:
            lines(root / "metadata.jsonl", *rows)
        return str(root)

    return write


def text_files(suffix: str) -> Callable:
    def write(files: Path, root: Path) -> str:
        copy(files, root, f"a{suffix}", f"b{suffix}")
        for name, text in zip("ab", CAPTIONS, strict=True):
            (root / f"{name}.txt").write_text(f"{text}\n")
        return str(root)

    return write


def class_folders(files: Path, root: Path) -> str:
    for number, text in enumerate(CAPTIONS):
        folder = root / text.replace(" ", "_")
        folder.mkdir()
        shutil.copy(files / f"{number}.wav", folder)
    return f"{root} --caption_column folder"


def tars(media: str, texts: str) -> Callable:
    def write(files: Path, root: Path) -> str:
        for number, text in enumerate(CAPTIONS):
            content = text if texts == "txt" else json.dumps({"caption": text, "start": 12.5})
            with tarfile.open(root / f"{number:05}.tar", "w") as tar:
                parts = ((media, (files / f"{number}.{media}").read_bytes()), (texts, content.encode()))
                for extension, data in parts:
                    info = tarfile.TarInfo(f"{number:07}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return str(root)

    return write


def as_dataset(files: Path) -> Dataset:
    sounds = [{"bytes": (files / f"{number}.wav").read_bytes(), "path": f"{number}.wav"} for number in range(2)]
    dataset = Dataset.from_dict({"audio": sounds, "label": [0, 1]})
    # A cast, because encoding sounds needs torchcodec.
    dataset = dataset.cast_column("audio", Audio(decode=False))
    return dataset.cast_column("label", ClassLabel(names=["a_low_hum", "a_high_beep"]))


def saved(files: Path, root: Path) -> str:
    as_dataset(files).save_to_disk(root / "saved")
    return str(root / "saved")


def saved_splits(files: Path, root: Path) -> str:
    DatasetDict({"test": as_dataset(files).select([0]), "train": as_dataset(files)}).save_to_disk(root / "saved")
    return str(root / "saved")


def pushed(files: Path, root: Path) -> str:
    (root / "data").mkdir()
    as_dataset(files).to_parquet(root / "data" / "train-00000-of-00001.parquet")
    (root / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: data/train-*}]\n---\n")
    return str(root)


def json_lines(absolute: bool) -> Callable:
    def write(files: Path, root: Path) -> str:
        copy(files, root / "sounds", "a.wav", "b.wav")
        base = f"{root}/" if absolute else ""
        rows = (
            {"audio": f"{base}sounds/{name}.wav", "caption": text} for name, text in zip("ab", CAPTIONS, strict=True)
        )
        lines(root / "list.jsonl", *rows)
        return f"{root}/list.jsonl"

    return write


def vggsound_folder(files: Path, root: Path) -> str:
    copy(files, root, "abcdefghij0_000030.mp4", "abcdefghij1_000040.mp4")
    rows = [(f"abcdefghij{i}_{start:06}.mp4", start, CAPTIONS[i]) for i, start in enumerate((30, 40))]
    table(root / "metadata.csv", ["file_name", "start", "label"], *rows)
    return f"{root} --start_column none"


def vggsound_csv(files: Path, root: Path) -> str:
    copy(files, root / "clips", "abcdefghij0_000030.mp4", "abcdefghij1_000040.mp4")
    rows = [(f"abcdefghij{i}", start, CAPTIONS[i], "train") for i, start in enumerate((30, 40))]
    table(root / "vggsound.csv", None, *rows, ("abcdefghij9", 50, "of the other split", "test"))
    return f"{root}/vggsound.csv --media_dir {root}/clips"


def with_ids(names: list[str], header: list[str], rows: list[tuple]) -> Callable:
    def write(files: Path, root: Path) -> str:
        copy(files, root / "sounds", *names)
        table(root / "train.csv", header, *rows)
        return f"{root}/train.csv --media_dir {root}/sounds"

    return write


def windows(as_rows: bool) -> Callable:
    def write(files: Path, root: Path) -> str:
        shutil.copy(files / "long.wav", root)
        parts = [{"start": 2.0 * i, "end": 2.0 * i + 2, "caption": text} for i, text in enumerate(CAPTIONS)]
        rows = [{"file_name": "long.wav", **part} for part in parts]
        lines(root / "metadata.jsonl", *(rows if as_rows else [{"file_name": "long.wav", "caption": parts}]))
        return str(root)

    return write


def turbo(files: Path, root: Path) -> str:
    copy(files, root, "a.wav", "b.wav")
    copy(files, root / "videos", "a.mp4", "b.mp4")
    kinds = ("text+video_condition-audio", "text_condition-music")
    lines(
        root / "manifest.jsonl",
        *(
            {
                "path": f"{name}.wav",
                "video_path": f"videos/{name}.mp4",
                "caption": {"audio_caption": {"0-10": text, "10-20": "later"}},
                "type": kind,
            }
            for name, text, kind in zip("ab", CAPTIONS, kinds, strict=True)
        ),
    )
    return f"{root}/manifest.jsonl"


def mixed(files: Path, root: Path) -> str:
    copy(files, root, "a.wav", "b.mp4")
    rows = zip(("a.wav", "b.mp4"), CAPTIONS, strict=True)
    lines(root / "metadata.jsonl", *({"file_name": name, "caption": text} for name, text in rows))
    return str(root)


AUDIOCAPS = ["audiocap_id", "youtube_id", "start_time", "caption"]
MUSICCAPS = ["ytid", "start_s", "end_s", "caption"]
# How the shape is written, and the share of its records with a video.
SHAPES = {
    **{f"csv with {name}": (folder_with(name, "csv"), 0) for name in ("caption", "text", "sentence", "label")},
    "JSON lines with captions": (folder_with("captions", "jsonl"), 0),
    "wav and txt": (text_files(".wav"), 0),
    "mp4 and txt": (text_files(".mp4"), 1),
    "class folders": (class_folders, 0),
    "tars of flac and txt": (tars("flac", "txt"), 0),
    "tars of mp4 and json": (tars("mp4", "json"), 1),
    "save_to_disk": (saved, 0),
    "save_to_disk with splits": (saved_splits, 0),
    "push_to_hub": (pushed, 0),
    "absolute paths": (json_lines(True), 0),
    "relative paths": (json_lines(False), 0),
    "VGGSound folder": (vggsound_folder, 1),
    "VGGSound csv": (vggsound_csv, 1),
    "AudioCaps csv": (
        with_ids(["id0.wav", "Yid1.wav"], AUDIOCAPS, [(7, "id0", 130, CAPTIONS[0]), (8, "id1", 60, CAPTIONS[1])]),
        0,
    ),
    "MusicCaps csv": (
        with_ids(["x.wav", "y_30.wav"], MUSICCAPS, [("x", 30, 40, CAPTIONS[0]), ("y", 30, 40, CAPTIONS[1])]),
        0,
    ),
    "segments as rows": (windows(True), 0),
    "AudioX-Turbo": (turbo, 1),
    "mixed": (mixed, 0.5),
}


def open_line(line: str) -> MixedDataset:
    (dataset,) = open_datasets(parse_args([*NEEDED, "--dataset", *line.split()]))
    return dataset


def records_of(dataset: MixedDataset, task: str | None = None) -> list:
    weights = {"text": 1e-9, "text_video": 1.0} if task is None else {task: 1.0}
    masking = MaskingConfig(task_weights=weights, drop_text_rate=0.0, drop_video_rate=0.0)
    reader = RecordReader(SMALL_WINDOW, [dataset.columns], masking, "start", 0.5, 0)
    rows = [
        (RowKey(0, 0, shard, number), row)
        for shard in range(dataset.source.num_shards)
        for number, row in enumerate(dataset.source.rows(shard))
    ]
    return [reader.read(key, row) for key, row in rows]


@pytest.mark.parametrize("shape", SHAPES)
def test_shape(files, tmp_path, shape):
    write, videos = SHAPES[shape]
    dataset = open_line(write(files, tmp_path))
    found = look(dataset, 0.5)
    check_look(found, {"text": 1.0})
    assert (found.total, found.usable, found.shares["caption"], found.damaged) == (2, 2, 2, [])
    assert found.shares["video"] == 2 * videos
    records = records_of(dataset)
    assert sorted(record.caption for record in records) == sorted(CAPTIONS)
    assert ["video" in record.choice.available for record in records].count(True) == 2 * videos
    assert all(record.waveform.abs().max() > 0.3 for record in records)


def test_segments_as_windows(files, tmp_path):
    dataset = open_line(windows(False)(files, tmp_path))
    assert look(dataset, 0.5).table().splitlines()[0].endswith("1 records, 0.00111 hours (looked at 1 rows)")
    (record,) = records_of(dataset)
    assert record.caption == CAPTIONS[0]


def test_tasks_of_the_turbo_manifest(files, tmp_path):
    dataset = open_line(turbo(files, tmp_path))
    assert [row["task"] for row in dataset.source.rows(0)] == ["text_video", "text"]


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.99])
def test_a_cut_tar_is_named_and_keeps_its_first_rows(files, tmp_path, cut):
    tars("flac", "txt")(files, tmp_path)
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number in range(4):
            for extension, data in (("flac", (files / "0.flac").read_bytes()), ("txt", b"a hum")):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        whole = tar.offset
    path = tmp_path / "00000.tar"
    path.write_bytes(path.read_bytes()[: round(whole * cut)])
    found = look(open_line(str(tmp_path)), 0.5)
    assert f"{path}: the rest of this shard cannot be read" in found.table()
    assert found.usable == {0.3: 1, 0.6: 2, 0.99: 3}[cut] + 1


def test_no_captions(files, tmp_path):
    copy(files, tmp_path / "class", "a.wav", "b.wav")
    dataset = open_line(str(tmp_path))
    with refused("no column with captions", "--task_weights text needs", "audio, folder", "--caption_column none"):
        check_look(look(dataset, 0.5), {"text": 1.0})
    check_look(look(dataset, 0.5), {"text": 0.0, "inpainting": 1.0})
    dataset = open_line(f"{tmp_path} --caption_column none")
    check_look(look(dataset, 0.5), {"text": 1.0})
    assert "caption" not in dataset.columns


def test_an_empty_column_of_captions(files, tmp_path):
    copy(files, tmp_path, "a.wav", "b.wav")
    table(tmp_path / "metadata.csv", ["file_name", "text"], ("a.wav", " "), ("b.wav", None))
    with refused("the column text holds no caption", "--caption_column"):
        check_look(look(open_line(str(tmp_path)), 0.5), {"text_video": 1.0})


def test_starts_of_the_original_video(files, tmp_path):
    name = vggsound_folder(files, tmp_path).split()[0]
    with refused("in 2 of 2 rows, the start is after the end of the file", "--start_column none"):
        check_look(look(open_line(name), 0.5), {"video": 1.0})


def test_no_usable_row(tmp_path):
    lines(tmp_path / "list.jsonl", {"audio": "gone.wav", "caption": "x"}, {"audio": "lost.wav", "caption": "y"})
    with refused("none of the first 2 rows can be used", "gone.wav"):
        check_look(look(open_line(f"{tmp_path}/list.jsonl"), 0.5), {"text": 1.0})


def test_the_table(files, tmp_path):
    name = folder_with("sentence", "csv")(files, tmp_path)
    with (tmp_path / "metadata.csv").open("a") as file:
        file.write("missing.wav,nothing\n")
    assert [line.split() for line in look(open_line(name), 0.5).table().splitlines()[1:5]] == [
        ["input", "column", "share"],
        ["audio", "audio", "100.0%"],
        ["video", "-", "0.0%"],
        ["image", "-", "0.0%"],
    ]
    assert "skipped  1 of 3: " in look(open_line(name), 0.5).table()


def test_a_first_look_is_bounded(files, tmp_path):
    copy(files, tmp_path, "a.wav")
    rows = [{"file_name": "a.wav", "caption": str(number)} for number in range(200)]
    lines(tmp_path / "metadata.jsonl", *rows)
    found = look(open_line(str(tmp_path)), 0.5)
    assert (found.looked, found.total) == (64, None)
    assert "unknown, streamed (looked at 64 rows)" in found.table()
    lines(tmp_path / "list.jsonl", *({"audio": "a.wav", "caption": row["caption"]} for row in rows))
    assert "200 records, about 0.0556 hours" in look(open_line(f"{tmp_path}/list.jsonl"), 0.5).table()


@pytest.mark.parametrize("rows", [[("a.wav", "30.5")], [("x", 1, 2, 3)], [("abcdefghij0", "30", "label")]])
def test_a_csv_without_header(tmp_path, rows):
    table(tmp_path / "list.csv", None, *rows)
    with refused("list.csv has no header"):
        open_line(f"{tmp_path}/list.csv")


def test_lines_that_are_not_objects(files, tmp_path):
    copy(files, tmp_path, "a.wav")
    (tmp_path / "list.jsonl").write_text('{"audio": "a.wav", "caption": "x"}\n[1]\n{"audio"\n\n{"audio": "a.wav"}\n')
    rows = list(open_line(f"{tmp_path}/list.jsonl").source.rows(0))
    assert [isinstance(row, Unreadable) for row in rows] == [False, True, True, False]
    assert rows[1].reason == "line 2 must be an object, got list" and "line 3 is not JSON" in rows[2].reason
