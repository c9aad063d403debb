import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_hub import clean_environment, loopback_hub
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audiox_diffusers.media import load_audio, save_audio
from audiox_diffusers.training.data.sources import DatasetSource


@pytest.fixture
def wav(tmp_path) -> bytes:
    save_audio(tmp_path / "tone.wav", 0.5 * np.sin(np.arange(4000, dtype=np.float32)), 8000)
    return (tmp_path / "tone.wav").read_bytes()


@pytest.fixture
def folder(tmp_path, wav):
    """A folder with two sounds."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(wav)
    return folder


def rows_of(source: DatasetSource) -> list[dict]:
    return [row for shard in range(source.num_shards) for row in source.rows(shard)]


def metadata(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_folder_with_json_lines(folder):
    windows = [{"start": 0.0, "end": 0.2, "caption": "low"}, {"start": 0.2, "end": 0.5, "caption": "high"}]
    metadata(
        folder,
        {"file_name": "b.wav", "caption": windows, "audio_prompt_file_name": "a.wav"},
        {"file_name": "a.wav", "caption": None, "audio_prompt_file_name": None},
    )
    source = DatasetSource(str(folder))
    first, second = rows_of(source)
    assert source.columns == ["audio", "caption", "audio_prompt"]
    assert first["audio"] == str(folder / "b.wav")
    assert first["caption"] == windows and second["caption"] is None
    assert first["audio_prompt"] == str(folder / "a.wav") and "audio_prompt" not in second


def test_folder_with_csv(folder):
    (folder / "metadata.csv").write_text("file_name,caption,start\nb.wav,a tone,0.25\na.wav,another,0\n")
    first, second = rows_of(DatasetSource(str(folder)))
    assert (first["caption"], first["start"]) == ("a tone", 0.25)
    assert second["audio"] == str(folder / "a.wav")


def test_folder_without_captions(folder):
    rows = rows_of(DatasetSource(str(folder)))
    assert rows == [{"audio": str(folder / "a.wav")}, {"audio": str(folder / "b.wav")}]


def write_tars(folder, wav, shards=3, rows=4):
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in range(rows):
                caption = json.dumps({"caption": f"{shard}-{row}"}).encode()
                for extension, data in (("wav", wav), ("json", caption)):
                    info = tarfile.TarInfo(f"{shard}{row}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("pattern", ["", "/*.tar"])
def test_tars(tmp_path, wav, pattern):
    write_tars(tmp_path / "tars", wav)
    source = DatasetSource(f"{tmp_path / 'tars'}{pattern}")
    assert source.num_shards == 3
    rows = rows_of(source)
    assert [row["json"]["caption"] for row in rows] == [f"{shard}-{row}" for shard in range(3) for row in range(4)]
    assert all(row["wav"]["bytes"] == wav for row in rows)
    assert list(source.rows(1, 2)) == rows[6:8]


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/0.parquet"])
def test_parquet(tmp_path, wav, pattern):
    (tmp_path / "parquet").mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(picture, "png")
    for shard in range(2):
        rows = [
            {
                "audio": {"bytes": wav, "path": None},
                "image": {"bytes": picture.getvalue()},
                "caption": [f"{shard}", "x"],
            }
        ] * 2
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / f"{shard}.parquet")
    source = DatasetSource(f"{tmp_path / 'parquet'}{pattern}")
    assert source.num_shards == (1 if "0" in pattern else 2)
    first = rows_of(source)[0]
    assert first["audio"]["bytes"] == wav and first["caption"] == ["0", "x"]
    assert first["image"]["bytes"] == picture.getvalue()


def test_json_lines_with_paths(folder, tmp_path):
    (tmp_path / "list.jsonl").write_text(json.dumps({"audio": str(folder / "a.wav"), "caption": "x"}) + "\n")
    (row,) = rows_of(DatasetSource(str(tmp_path / "list.jsonl")))
    assert load_audio(row["audio"])[1] == 8000


class ShardOfWorker(IterableDataset):
    def __init__(self, source):
        self.source = source

    def __iter__(self):
        for row in self.source.rows(get_worker_info().id):
            yield row["json"]["caption"]


def test_a_worker_reads_the_whole_shard(tmp_path, wav):
    write_tars(tmp_path / "tars", wav, shards=2)
    loader = DataLoader(ShardOfWorker(DatasetSource(str(tmp_path / "tars"))), batch_size=None, num_workers=2)
    assert sorted(loader) == [f"{shard}-{row}" for shard in range(2) for row in range(4)]


def test_a_damaged_shard_keeps_its_first_rows(tmp_path, wav):
    write_tars(tmp_path / "tars", wav)
    path = tmp_path / "tars" / "1.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 200])
    source = DatasetSource(str(tmp_path / "tars"))
    *read, rest = source.rows(1)
    assert 0 < len(read) < 4 and f"{path}: the rest of this shard cannot be read" in rest.reason
    assert len(list(source.rows(2))) == 4


@pytest.mark.parametrize("what", ["missing", "empty folder", "no rows", "other split"])
def test_datasets_that_cannot_be_opened(tmp_path, folder, what):
    name, options = tmp_path / "nowhere", {}
    if what == "empty folder":
        name.mkdir()
    if what == "no rows":
        name.mkdir()
        schema = pa.schema([("audio", pa.binary())])
        pq.write_table(pa.Table.from_pylist([], schema), name / "0.parquet")
    if what == "other split":
        name, options = folder, {"split": "validation"}
    with pytest.raises(ValueError, match="`--dataset .*(nowhere|data)`"):
        DatasetSource(str(name), **options)


def test_parquet_on_the_hub_is_streamed(tmp_path, wav):
    rows = [{"audio": {"bytes": wav, "path": "a.wav"}, "caption": caption} for caption in ("low", "high")]
    (tmp_path / "repository/data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "repository/data/train-00000-of-00001.parquet")
    code = (
        "from audiox_diffusers.training.data.sources import DatasetSource\n"
        "source = DatasetSource('user/sounds')\n"
        "print([(row['caption'], len(row['audio']['bytes'])) for row in source.rows(0)])\n"
        "print([row['caption'] for row in source.rows(0, 1)])"
    )
    with loopback_hub({"datasets/user/sounds": tmp_path / "repository"}) as hub:
        environment = clean_environment(tmp_path / "home", hub)
        output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.splitlines() == [str([("low", len(wav)), ("high", len(wav))]), "['high']"]
    assert not list((tmp_path / "home").rglob("*.parquet"))
