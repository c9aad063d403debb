import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio
from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data import latent_cache
from audiox_diffusers.training.data.encoding import RecordEncoder
from audiox_diffusers.training.data.latent_cache import CacheReader, Parts, read_null_embeddings, write_cache
from audiox_diffusers.training.data.records import BadRecord, RecordReader, WindowSpec
from audiox_diffusers.training.data.sources import DatasetSource
from audiox_diffusers.training.data.streaming import RowKey, read_shard

COLUMNS = {name: name for name in ("audio", "video", "image", "caption", "audio_prompt", "task")}
KEEP_ALL = dict.fromkeys(("drop_text_rate", "drop_video_rate", "drop_audio_rate"), 0.0)
DESCRIPTION = {"of": "a test"}


class Rows:
    """A source with a list of rows for each shard. It fails at `broken`, a shard and a row."""

    name = "rows"

    def __init__(self, *shards: list[dict], broken: tuple[int, int] | None = None):
        self.shards, self.broken = shards, broken
        self.num_shards = len(shards)

    def rows(self, shard, start=0):
        for row, values in enumerate(self.shards[shard][start:], start):
            if (shard, row) == self.broken:
                raise OSError("bad block")
            yield values


@pytest.fixture(scope="module")
def pipe(small_model) -> AudioXPipeline:
    return AudioXPipeline.from_pretrained(small_model)


@pytest.fixture(scope="module")
def encoder(pipe) -> RecordEncoder:
    return RecordEncoder(pipe, torch.device("cpu"), "a picture")


@pytest.fixture
def accelerator() -> Accelerator:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def media(tmp_path_factory, scenes) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("media")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        save_audio(folder / f"{name}.wav", 0.1 * generator.standard_normal(8000).astype(np.float32), 8000)
    save_audio(folder / "long.wav", 0.1 * generator.standard_normal(40000).astype(np.float32), 8000)
    Image.new("RGB", (40, 30), (255, 0, 128)).save(folder / "red.png")
    (folder / "broken.mp4").write_bytes(b"this is no video")
    return {path.name: str(path) for path in folder.iterdir()} | {"clip.mp4": str(scenes / "00000.mp4")}


def reader(pipe, task=None, seed=0, columns=COLUMNS) -> RecordReader:
    weights = {} if task is None else {"task_weights": {task: 1.0}}
    return RecordReader(WindowSpec.of(pipe), [columns] * 2, MaskingConfig(**KEEP_ALL, **weights), "random", 0.5, seed)


@pytest.fixture
def cache(pipe, encoder, accelerator, tmp_path):
    """Return `cache(source, ...)`, which writes a cache and returns the cached source."""

    def write(*sources, folder="cache", workers=0, description=DESCRIPTION, reading=None):
        reading = reading or reader(pipe)
        cached = write_cache(tmp_path / folder, description, list(sources), reading, encoder, workers, accelerator)
        return cached[0] if len(cached) == 1 else cached

    return write


def parts_of(folder: Path) -> dict[str, list[dict]]:
    """Return the rows of each file of a cache."""
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pylist() for path in sorted(folder.rglob("*.parquet"))
    }


@pytest.fixture
def sounds(media):
    """Return `sounds(n)`, which makes `n` rows with different captions."""

    def rows(count: int) -> list[dict]:
        return [{"audio": media["ab"[row % 2] + ".wav"], "caption": "x" * (row + 1)} for row in range(count)]

    return rows


@pytest.fixture
def shards(media, tmp_path):
    """Return `shards(3, 2)`, which writes a dataset of two Parquet files with 3 and 2 rows."""

    def write(*counts: int) -> DatasetSource:
        files = [Path(media[name]).read_bytes() for name in ("a.wav", "b.wav")]
        for shard, count in enumerate(counts):
            audio = {"path": "x.wav", "bytes": files[shard % 2]}
            rows = [{"audio": audio, "caption": "y" * (row + 1)} for row in range(count)]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{shard}.parquet", row_group_size=1)
        return DatasetSource(str(tmp_path / "*.parquet"))

    return write


def test_rows_hold_the_output_of_the_encoders(cache, pipe, encoder, media, monkeypatch, tmp_path):
    monkeypatch.setattr(latent_cache, "ROWS", 2)
    rows = [
        {"audio": media["a.wav"]},
        {"audio": media["a.wav"], "caption": ["a bell", "it rings"], "task": "text"},
        {"video": media["clip.mp4"], "caption": "a clip"},
        {"audio": media["b.wav"], "image": media["red.png"], "audio_prompt": media["a.wav"]},
        {"audio": media["long.wav"], "caption": "a window of it"},
    ]
    kinds = set()
    source = cache(Rows(rows))
    for number, (row, cached) in enumerate(zip(rows, source.rows(0), strict=True)):
        record = reader(pipe).read(RowKey(0, 0, 0, number), row, everything=True)
        (expected,) = encoder.encode([record])
        for epoch in range(3):
            key = RowKey(0, epoch, 0, number)
            sample = CacheReader(reader(pipe)).read(key, cached)
            assert sample.key == key and sample.record is None
            if number < 4 or epoch == 0:  # the tasks of a longer record depend on the window
                assert sample.task_spec == reader(pipe).read(key, row).task_spec
            tensors = sample.encoded.tensors()
            assert tensors.keys() == expected.tensors().keys()
            for name, tensor in expected.tensors().items():
                assert torch.equal(tensors[name], tensor), name
        kinds |= expected.tensors().keys()
    assert kinds >= {"text_embeds", "video_embeds", "image_embeds", "previous_mean", "previous_std", "latent_mean"}
    null_embeddings = read_null_embeddings(tmp_path / "cache")
    assert all(
        torch.equal(value, getattr(null_embeddings, name)) for name, value in vars(encoder.null_embeddings()).items()
    )


def test_bad_rows_keep_their_place(cache, pipe, media):
    good = {"audio": media["a.wav"], "caption": "a"}
    rows = [good, {"audio": media["broken.mp4"]}, good, {"caption": "no sound"}, {**good, "task": "music"}, good]
    source = cache(Rows(rows))
    reasons = {}
    for number, row in enumerate(source.rows(0)):
        try:
            CacheReader(reader(pipe)).read(RowKey(0, 0, 0, number), row)
        except BadRecord as error:
            reasons[number] = str(error)
            with pytest.raises(BadRecord) as plain:
                reader(pipe).read(RowKey(0, 0, 0, number), rows[number])
            assert str(plain.value) == reasons[number]
    assert list(reasons) == [1, 3, 4]
    assert "broken.mp4: not a sound or video file" in reasons[1] and "neither audio nor video" in reasons[3]


@pytest.mark.parametrize(
    ("video", "reason"), [("broken.mp4", "not a sound or video file"), ("nowhere.mp4", "no such file")]
)
def test_a_broken_video_affects_only_tasks_with_video(cache, pipe, media, video, reason):
    row = {"audio": media["a.wav"], "caption": "a", "video": media.get(video, video)}
    (cached,) = cache(Rows([row])).rows(0)
    key = RowKey(0, 0, 0, 0)
    assert CacheReader(reader(pipe, "text")).read(key, cached).task_spec.task == "text"
    for task in ("video", "text_video", "inpainting"):
        with pytest.raises(BadRecord, match=f"{video}: {reason}"):
            CacheReader(reader(pipe, task)).read(key, cached)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:100], lambda data: b"", lambda data: b"\xff" * 8 + data[8:], lambda data: data + b"x"],
)
def test_damaged_rows_are_bad_records(cache, pipe, media, damage):
    (cached,) = cache(Rows([{"audio": media["a.wav"]}])).rows(0)
    with pytest.raises(BadRecord):
        CacheReader(reader(pipe)).read(RowKey(0, 0, 0, 0), {**cached, "tensors": damage(cached["tensors"])})


def test_rows_can_be_used_for_other_tasks(cache, pipe, media):
    (cached,) = cache(Rows([{"audio": media["a.wav"]}]), reading=reader(pipe, "text")).rows(0)
    key = RowKey(0, 0, 0, 0)
    with pytest.raises(BadRecord, match="`task_weights` are 0 for all possible tasks"):
        CacheReader(reader(pipe, "text")).read(key, cached)
    assert CacheReader(reader(pipe, "inpainting")).read(key, cached).task_spec.task == "inpainting"


def test_a_damaged_shard(cache, pipe, sounds):
    source = Rows(sounds(3), sounds(3), broken=(0, 2))
    cached = cache(source)
    assert [row["error"] for row in cached.rows(1)] == [None] * 3
    (_, _, broken) = read_shard(source, 0)
    (*_, last) = cached.rows(0)
    assert last["error"] == broken.reason == "the rest of the shard cannot be read (OSError: bad block)"
    assert len(list(cached.rows(0))) == 3


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_rows_can_start_anywhere(cache, sounds, monkeypatch, tmp_path, count):
    monkeypatch.setattr(latent_cache, "ROWS", 3)
    source = cache(Rows(sounds(count), sounds(1)))
    assert len(list(tmp_path.glob("cache/source-000/shard-00000-*"))) == (count + 2) // 3
    whole = list(source.rows(0))
    assert len({row["tensors"] for row in whole}) == len(whole) == count
    for start in range(count + 4):
        assert list(source.rows(0, start)) == whole[start:]
    assert len(list(source.rows(1))) == 1


@pytest.mark.slow
def test_workers_give_the_same_files(cache, pipe, shards, tmp_path):
    for workers in (0, 2):
        reading = reader(pipe, columns={"audio": "audio", "caption": "caption"})
        cache(shards(5, 2, 3), folder=f"{workers}-workers", workers=workers, reading=reading)
    plain = parts_of(tmp_path / "0-workers")
    assert [len(rows) for rows in plain.values()] == [5, 2, 3]
    assert parts_of(tmp_path / "2-workers") == plain
    assert not list(tmp_path.rglob(".*")), "temporary files are left"


def test_processes_divide_the_parts(pipe, sounds, monkeypatch, tmp_path):
    monkeypatch.setattr(latent_cache, "ROWS", 2)
    sources = [Rows(sounds(5), sounds(2)), Rows(sounds(3))]
    every = [part.path for part in Parts(tmp_path, sources, reader(pipe), 0, 1)]
    divided = [[part.path for part in Parts(tmp_path, sources, reader(pipe), process, 2)] for process in (0, 1)]
    assert divided == [every[0::2], every[1::2]] and len(every) == 6


def test_an_interrupted_cache_is_completed(cache, sounds, monkeypatch, tmp_path):
    monkeypatch.setattr(latent_cache, "ROWS", 2)
    source, folder = Rows(sounds(5)), tmp_path / "cache"
    cache(source)
    whole = parts_of(folder)
    files = sorted(folder.rglob("*.parquet"))
    lost = files[1]
    lost.unlink()
    description = json.loads((folder / "cache.json").read_text())
    assert description["complete"]
    (folder / "cache.json").write_text(json.dumps({**description, "complete": False}))
    times = {path: path.stat().st_mtime_ns for path in files if path != lost}

    assert len(list(cache(source).rows(0))) == 5
    assert parts_of(folder) == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert json.loads((folder / "cache.json").read_text())["complete"]


def test_an_error_leaves_the_cache_to_be_completed(cache, encoder, sounds, monkeypatch, tmp_path):
    monkeypatch.setattr(latent_cache, "ROWS", 2)
    encode, calls = encoder.encode, []

    def fail(records):
        calls.append(records)
        if len(calls) == 4:
            raise MemoryError
        return encode(records)

    monkeypatch.setattr(encoder, "encode", fail)
    with pytest.raises(MemoryError):
        cache(Rows(sounds(5)))
    assert [len(rows) for rows in parts_of(tmp_path / "cache").values()] == [2]
    assert len(list(cache(Rows(sounds(5))).rows(0))) == 5
    assert len(calls) == 4 + 3, "rows of complete parts are not encoded again"


def test_a_complete_cache_is_not_written_again(cache, encoder, sounds, monkeypatch):
    rows = list(cache(Rows(sounds(2))).rows(0))
    monkeypatch.setattr(encoder, "encode", None)
    monkeypatch.setattr(encoder, "null_embeddings", None)
    assert list(cache(Rows(sounds(2))).rows(0)) == rows


def test_a_cache_of_another_run(cache, sounds):
    cache(Rows(sounds(1)), description={"model": "a", "crop": "random"})
    with pytest.raises(
        ValueError, match=r"--cache_latents .* another run \(model was 'a' and is 'b'\); choose another"
    ):
        cache(Rows(sounds(1)), description={"model": "b", "crop": "random"})
    with pytest.raises(ValueError, match=r"\(num_shards was \[1\] and is \[2\]\)"):
        cache(Rows(sounds(1), sounds(1)), description={"model": "a", "crop": "random"})
    with pytest.raises(ValueError, match=r"\(seed was None and is 3\)"):
        cache(Rows(sounds(1)), description={"model": "a", "crop": "random", "seed": 3})


def test_which_options_a_cache_depends_on(train, small_model, scenes, tmp_path):
    cache = tmp_path / "cache"
    train("first", 1, "--cache_latents", cache)
    (tmp_path / "other").symlink_to(small_model)
    (tmp_path / "data").symlink_to(scenes)
    for option, value, named in (
        ("crop", "start", "crop was 'random' and is 'start'"),
        ("seed", 1, "seed was 0 and is 1"),
        ("min_seconds", 1.5, "min_seconds was 1.0 and is 1.5"),
        ("video_prompt", "a film", "video_prompt was .* and is 'a film'"),
        ("caption_column", "none", r"columns was .*'caption': \['caption'\].* and is \[\{'video': \['video'\]\}\]"),
        ("pretrained_model_name_or_path", tmp_path / "other", "model was .*audiox-small' and is '.*other'"),
        ("dataset", tmp_path / "data", "dataset was .*scenes'.* and is .*data"),
    ):
        with pytest.raises(ValueError, match=f"--cache_latents .* has a cache of another run .*{named}"):
            train("out", 1, "--cache_latents", cache, f"--{option}", value)
    options = ["--task_weights", "text=0", "--learning_rate", 1e-4, "--drop_text_rate", 0.5, "--use_ema"]
    assert len(train("out", 1, "--cache_latents", cache, *options)) == 1


def test_shards_are_kept(cache, pipe, encoder, media, tmp_path):
    files = [Path(media[name]).read_bytes() for name in ("a.wav", "b.wav")]
    for shard, count in enumerate((3, 2)):
        rows = [
            {"audio": {"path": "x.wav", "bytes": files[shard]}, "caption": "y" * (row + 1)} for row in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{shard}.parquet", row_group_size=1)
    source = DatasetSource(str(tmp_path / "*.parquet"))
    columns = {"audio": "audio", "caption": "caption"}
    cached = cache(source, reading=reader(pipe, columns=columns))
    assert (cached.num_shards, cached.name) == (2, source.name)
    for shard in (0, 1):
        for number, (row, made) in enumerate(zip(source.rows(shard), cached.rows(shard), strict=True)):
            key = RowKey(0, 0, shard, number)
            plain = reader(pipe, "text", columns=columns).read(key, row)
            sample = CacheReader(reader(pipe, "text")).read(key, made)
            assert sample.task_spec == plain.task_spec
            mean, _ = encoder.posterior(plain.waveform[None])
            assert torch.equal(sample.encoded.latent_mean, mean[0])
