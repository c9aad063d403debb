"""Caches of whole records: equal to training without one, however they were built."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers import refused
from PIL import Image
from small_pipelines import KINDS, build_kind

from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data import cache_files, cache_pieces
from audiox_diffusers.training.data.bad_records import BadRecord
from audiox_diffusers.training.data.batches import BatchMaker, Sample
from audiox_diffusers.training.data.decoding import RecordSound, decodes_in_blocks
from audiox_diffusers.training.data.encoding import RecordEncoder
from audiox_diffusers.training.data.latent_cache import LatentCache
from audiox_diffusers.training.data.records import RecordReader
from audiox_diffusers.training.data.sources import DatasetSource
from audiox_diffusers.training.data.streaming import RowKey, Unreadable, read_shard
from audiox_diffusers.training.data.windows import CROPS, WindowSpec
from audiox_diffusers.training.methods.model import AudioXTrainingModel
from audiox_diffusers.training.objective import TimestepSampler, objective_for
from audiox_diffusers.training.run.lock import locked
from audiox_diffusers.training.strategy import DiffusionStrategy

COLUMNS = {name: name for name in ("audio", "video", "image", "caption", "audio_prompt", "task", "start", "end")}
KEEP_ALL = dict.fromkeys(("drop_text_rate", "drop_video_rate", "drop_audio_rate"), 0.0)


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
def media(tmp_path_factory) -> dict[str, str]:
    """Sounds and videos of noise, with and without a window's length, at rates that divide the model's and do not."""
    folder, generator = tmp_path_factory.mktemp("media"), np.random.default_rng(0)

    def noise(seconds: float, rate: int) -> np.ndarray:
        return (0.1 * generator.standard_normal(round(seconds * rate))).astype(np.float32)

    for name, seconds, rate in (
        ("short.wav", 1.2, 8000),
        ("long.wav", 13.7, 44100),
        ("odd.flac", 9.3, 16001),
        ("halves.wav", 7.3, 11025),
        ("hall.mp3", 9.0, 32000),
    ):
        save_audio(folder / name, noise(seconds, rate), rate)
    for name, count in (("clip.mp4", 90), ("early.mp4", 52), ("still.mp4", 1)):
        frames = generator.integers(0, 255, (count, 4, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        save_video(folder / name, frames, noise(9.0, 24000)[None], 24000, fps=10)
    half = noise(16.0, 8000)
    half[: 8000 * 13] = 0
    save_audio(folder / "half.wav", half, 8000)
    save_audio(folder / "silent.wav", 0 * half, 8000)
    save_video(folder / "black.mp4", np.zeros((30, 32, 48, 3), np.uint8), noise(3.0, 24000)[None], 24000, fps=10)
    Image.new("RGB", (40, 30), (255, 0, 128)).save(folder / "red.png")
    (folder / "broken.mp4").write_bytes(b"this is no video")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def rows(media) -> list[dict]:
    windows = [{"start": 2 * n, "end": 2 * n + 3, "caption": f"part {n}"} for n in range(6)]
    return [
        {"audio": media["short.wav"], "caption": ["a bell", "it rings"]},
        {"audio": media["long.wav"], "caption": windows},
        {
            "audio": media["long.wav"],
            "start": 0.7,
            "end": 11.33,
            "caption": "a segment",
            "audio_prompt": media["short.wav"],
        },
        {"audio": media["odd.flac"], "start": 1.23, "caption": "an odd rate"},
        {"audio": media["halves.wav"], "start": 0.5, "caption": "starts between two samples"},
        {"audio": media["hall.mp3"], "image": media["red.png"]},
        {"video": media["clip.mp4"], "caption": "a clip"},
        {"video": media["early.mp4"], "start": 1.0, "caption": "the picture ends early"},
        {"audio": media["short.wav"], "video": media["still.mp4"]},
        {"audio": media["half.wav"], "caption": "mostly silent"},
    ]


@pytest.fixture(scope="module", params=KINDS)
def any_encoder(request) -> RecordEncoder:
    return RecordEncoder(build_kind(request.param), torch.device("cpu"), "a picture")


@pytest.fixture(scope="module")
def encoder() -> RecordEncoder:
    return RecordEncoder(build_kind("audio_autoencoder"), torch.device("cpu"), "a picture")


def reader_of(encoder: RecordEncoder, task: str | None = None, **options) -> RecordReader:
    weights = {} if task is None else {"task_weights": {task: 1.0}}
    masking = MaskingConfig(**KEEP_ALL, **weights)
    return RecordReader(encoder.spec, [COLUMNS] * 2, masking, "random", 0.5, 0, **options)


@pytest.fixture
def build(encoder, tmp_path):
    """Return `build(source, ...)`, which builds a cache and returns its sources and a function that reads samples."""

    def run(*sources, folder="cache", encoder=encoder, settings=None, workers=0, **options):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        reader = reader_of(encoder, **options)
        cache = LatentCache(tmp_path / folder, settings or {}, list(sources), reader, encoder)
        if not cache.complete:
            cache.build(workers, Accelerator(cpu=True))
        return cache.read()

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def keys_of(number: int, epochs: int) -> list[RowKey]:
    return [RowKey(0, epoch, 0, number) for epoch in range(epochs)]


# Equality


@pytest.mark.slow
def test_a_cache_changes_nothing(any_encoder, rows, build):
    """Crops, tasks, embeddings and latents equal those without a cache, up to rounding, and so do the losses."""
    (source,), reader = build(Rows(rows), encoder=any_encoder)
    plain, kinds, pairs = reader_of(any_encoder), set(), []
    for number, entry in enumerate(source.rows(0)):
        for key in keys_of(number, 5):
            try:
                record = plain.read(key, rows[number])
            except BadRecord as error:
                with pytest.raises(BadRecord) as same:
                    reader.read(key, entry)
                assert str(same.value) == str(error)
                continue
            sample = reader.read(key, entry)
            assert (sample.key, sample.task_spec, sample.record) == (key, record.task_spec, None)
            (encoded,) = any_encoder.encode([record])
            expected, found = encoded.tensors(), sample.encoded.tensors()
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                tensor = tensor[: len(found[name])] if name == "text_embeds" else tensor
                torch.testing.assert_close(found[name].float(), tensor.float(), rtol=0, atol=1e-5 * tensor.abs().max())
            kinds |= found.keys()
            pairs.append((sample, Sample(key, record.task_spec, encoded, record)))
    assert kinds >= {"text_embeds", "video_embeds", "image_embeds"} and {name[:8] for name in kinds} >= {"previous"}
    assert losses(any_encoder, [cached for cached, _ in pairs]) == pytest.approx(
        losses(any_encoder, [uncached for _, uncached in pairs]), abs=1e-4
    )


@torch.no_grad()
def losses(encoder: RecordEncoder, samples: list[Sample]) -> list[float]:
    pipe = encoder.pipe
    size = (pipe.transformer.config.in_channels, pipe.transformer.config.sample_size)
    masking = MaskingConfig()
    maker = BatchMaker(pipe.conditioner.config, size, encoder.null_embeddings(), masking, 0, torch.device("cpu"))
    strategy = DiffusionStrategy(objective_for(pipe.scheduler), TimestepSampler())
    return strategy.loss(AudioXTrainingModel(encoder), maker.make(samples), 0).tolist()


def test_latents_are_those_of_the_whole_record(encoder, media):
    """A window is cut out of the encoded record: sound around it counts, as far as the VAE depends on it."""
    spec, reader, row = encoder.spec, reader_of(encoder, "inpainting"), {"audio": media["long.wav"], "start": 0.7}
    whole = reader.open(RowKey(0, 0, 0, 0), row)
    total = spec.encoded_samples(whole.facts.seconds)
    mean, _ = encoder.posterior(whole.sound.read(0, total)[None])
    frames = set()
    for key in keys_of(0, 8):
        record = reader.read(key, row)
        (encoded,) = encoder.encode([record])
        frame = record.choice.crop.frame
        expected = mean[0, :, frame : frame + spec.num_latents]
        assert (encoded.latent_mean - expected).abs().max() < 1e-5 * expected.abs().max()
        alone, _ = encoder.posterior(record.waveform[None])
        assert (alone[0, :, 1:-1] - expected[:, 1:-1]).abs().max() < 1e-4 * expected.abs().max()
        frames.add(frame)
    assert len(frames) == 8


def test_sound_does_not_depend_on_the_pieces_it_is_read_in(encoder, media):
    for name, start in (("long.wav", 0.7), ("odd.flac", 1.23), ("halves.wav", 0.5), ("hall.mp3", 3.1)):
        sound = reader_of(encoder).open(RowKey(0, 0, 0, 0), {"audio": media[name], "start": start}).sound
        whole = sound.read(0, 40000)
        for first, stop in ((0, 9000), (11111, 12222), (7999, 30001), (35000, 40000)):
            assert (sound.read(first, stop) - whole[:, first:stop]).abs().max() < 1e-5


def test_noise_of_aac_does_not_depend_on_the_pieces(tmp_path):
    """Decoders replace it by random numbers, which depend on where decoding begins."""
    noise = (0.1 * np.random.default_rng(0).standard_normal((2, 18 * 44100))).astype(np.float32)
    save_video(tmp_path / "noise.mp4", np.zeros((18, 32, 32, 3), np.uint8), noise, 44100, fps=1)
    path = str(tmp_path / "noise.mp4")
    assert decodes_in_blocks(path)
    worst = {}
    for in_blocks in (False, True):
        sound = RecordSound(path, 0.0, 18.0, 44100, 2, in_blocks)
        whole = sound.read(0, 17 * 44100)
        pieces = ((second * 44100, (second + 2) * 44100) for second in range(3, 14))
        worst[in_blocks] = max((sound.read(*piece) - whole[:, slice(*piece)]).abs().max() for piece in pieces)
    assert worst[True] < 1e-5 < worst[False]


def test_video_windows_begin_with_a_frame_and_a_segment(any_encoder):
    spec = any_encoder.spec
    period = 0.4 if spec.sync_stride else 0.2
    assert float(spec.picture_period) == period and spec.period_frames == round(5 * period)
    released = WindowSpec(
        44100, 2, 2048, 10, 236 * 2048, 441000, 5.0, 50, 224, 25.0, 248, 224, sync_segment=16, sync_stride=8
    )
    assert (float(released.picture_period), released.period_frames, released.period_segments) == (1.6, 8, 5)
    assert released.num_sync_segments == 30


@pytest.mark.parametrize("blocks", [1, 300])
def test_a_long_file_yields_many_crops(build, encoder, tmp_path, monkeypatch, blocks):
    """410 seconds are one row, read in blocks, with the latents of the whole."""
    monkeypatch.setattr(cache_pieces, "BLOCK_SECONDS", 100 if blocks > 1 else 7)
    generator = np.random.default_rng(1)
    save_audio(tmp_path / "long.wav", 0.1 * generator.standard_normal(410 * 8000).astype(np.float32), 8000)
    row = {"audio": str(tmp_path / "long.wav"), "caption": "noise"}
    (source,), reader = build(Rows([row]))
    (entry,) = source.rows(0)
    samples = [reader.read(key, entry) for key in keys_of(0, 60)]
    firsts = {sample.encoded.latent_mean[:, 0].sum().item() for sample in samples}
    assert len(firsts) >= 40
    (expected,) = encoder.encode([reader_of(encoder).read(RowKey(0, 7, 0, 0), row)])
    torch.testing.assert_close(samples[7].encoded.latent_mean, expected.latent_mean, rtol=0, atol=1e-4)


# Silence


def test_silent_windows_are_drawn_again(encoder, media, build):
    """Three of 16 seconds are not silent. They are found in nearly every epoch, with and without a cache."""
    row = {"audio": media["half.wav"], "caption": "mostly silent"}
    (source,), reader = build(Rows([row, {"audio": media["silent.wav"]}]))
    entries, plain, found = list(source.rows(0)), reader_of(encoder), 0
    for key in keys_of(0, 20):
        try:
            record = plain.read(key, row)
        except BadRecord as error:
            assert str(error) == "is silent"
            with pytest.raises(BadRecord, match="is silent"):
                reader.read(key, entries[0])
            continue
        found += 1
        assert record.waveform.abs().max() > 0.1 and reader.read(key, entries[0]).task_spec == record.task_spec
    assert found >= 18 and CROPS == 16
    for read, row in ((plain.read, {"audio": media["silent.wav"]}), (reader.read, entries[1])):
        with pytest.raises(BadRecord, match="is silent"):
            read(RowKey(0, 0, 0, 1), row)


def test_silence_can_be_kept(encoder, media, build):
    rows = [{"audio": media["half.wav"], "caption": "mostly silent"}, {"audio": media["silent.wav"]}]
    (source,), reader = build(Rows(rows), keep_silence=True)
    plain, silent = reader_of(encoder, keep_silence=True), 0
    for number, entry in enumerate(source.rows(0)):
        for key in keys_of(number, 8):
            record = plain.read(key, rows[number])
            silent += not record.waveform.any()
            (encoded,) = encoder.encode([record])
            cached = reader.read(key, entry).encoded
            torch.testing.assert_close(cached.latent_mean, encoded.latent_mean, rtol=0, atol=1e-5)
    assert silent > 8


# Rows


def test_bad_rows_keep_their_place(build, encoder, media):
    good = {"audio": media["short.wav"], "caption": "a"}
    rows = [good, {"audio": media["broken.mp4"]}, good, {"caption": "no sound"}, {**good, "task": "music"}]
    rows += [{**good, "start": 0.9}, {**good, "task": 7}, {"video": media["black.mp4"], "task": "video"}, good]
    (source,), reader = build(Rows(rows))
    bad = []
    for number, entry in enumerate(source.rows(0)):
        try:
            reader.read(RowKey(0, 0, 0, number), entry)
        except BadRecord as error:
            bad.append(number)
            with pytest.raises(BadRecord) as plain:
                reader_of(encoder).read(RowKey(0, 0, 0, number), rows[number])
            assert str(plain.value) == str(error)
    assert bad == [1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("video", "reason"), [("broken.mp4", "not a sound or video file"), ("nowhere.mp4", "no such file")]
)
def test_a_broken_video_affects_only_tasks_with_video(build, encoder, media, video, reason):
    row = {"audio": media["short.wav"], "caption": "a", "video": media.get(video, video)}
    (source,), reader = build(Rows([row]), task="text")
    (entry,), key = source.rows(0), RowKey(0, 0, 0, 0)
    assert reader.read(key, entry).task_spec.task == "text"
    for task in ("video", "text_video", "inpainting"):
        reader.reader = reader_of(encoder, task)
        with pytest.raises(BadRecord, match=f"{video}: {reason}"):
            reader.read(key, entry)


def test_a_damaged_shard(build, media):
    row = {"audio": media["short.wav"], "caption": "a"}
    source = Rows([row] * 3, [row] * 3, broken=(0, 2))
    (cached,), reader = build(source)
    assert len(list(cached.rows(0))) == len(list(cached.rows(1))) == 3
    (*_, broken), (*_, entry) = read_shard(source, 0), cached.rows(0)
    assert isinstance(broken, Unreadable)
    with pytest.raises(BadRecord) as error:
        reader.read(RowKey(0, 0, 0, 2), entry)
    assert str(error.value) == broken.reason == "the rest of the shard cannot be read (OSError: bad block)"


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"", lambda data: b"\xff" * 8 + data[8:]])
def test_damaged_tensors_are_bad_records(build, media, tmp_path, damage):
    (source,), reader = build(Rows([{"audio": media["short.wav"]}]))
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    (entry,) = source.rows(0)
    with pytest.raises(BadRecord):
        reader.read(RowKey(0, 0, 0, 0), entry)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_rows_can_start_anywhere(build, media, monkeypatch, tmp_path, count):
    monkeypatch.setattr(cache_files, "ROWS", 3)
    monkeypatch.setattr(cache_pieces, "ROWS", 3)
    rows = [{"audio": media["short.wav"], "caption": "x" * (row + 1)} for row in range(count)]
    (source,), _ = build(Rows(rows, rows[:1] or [{}]))
    assert len(list(tmp_path.glob("cache/source-000/shard-00000-*.json"))) == (count + 2) // 3
    whole = list(source.rows(0))
    assert [len(entry["facts"]["captions"][0][2]) for entry in whole] == list(range(1, count + 1))
    for start in range(count + 4):
        assert list(source.rows(0, start)) == whole[start:]
    assert len(list(source.rows(1))) == 1


# Building


def sources_of(media) -> list[Rows]:
    clip = {"video": media["clip.mp4"], "caption": "a clip"}
    rows = [{"audio": media["short.wav"], "caption": "x" * (row + 1)} for row in range(5)]
    return [Rows([*rows, clip], rows[:2]), Rows([clip, {"audio": media["long.wav"]}])]


def test_two_processes_build_what_one_does(build, encoder, media, tmp_path, monkeypatch):
    for module in (cache_files, cache_pieces):
        monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(cache_files, "FILE_BYTES", 2**18)
    build(*sources_of(media), folder="one")
    barrier, written = threading.Barrier(2), {}

    def run(process: int) -> None:
        accelerator = SimpleNamespace(
            process_index=process,
            num_processes=2,
            is_main_process=process == 0,
            is_local_main_process=process == 0,
            wait_for_everyone=barrier.wait,
        )
        cache = LatentCache(tmp_path / "two", {}, sources_of(media), reader_of(encoder), encoder)
        written[process] = [
            piece.part for piece in cache_pieces.PartPieces(tmp_path / "x", cache.sources, cache.reader, process, 2)
        ]
        cache.build(0, accelerator)

    threads = [threading.Thread(target=run, args=(process,)) for process in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    one = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == one
    assert written[0] and written[1] and not set(written[0]) & set(written[1])
    assert len([name for name in one if name.endswith("-001.safetensors")]) > 1, "parts have several files"


@pytest.mark.slow
def test_workers_build_what_one_process_does(build, media, tmp_path):
    for shard, name in enumerate(("short.wav", "long.wav", "halves.wav")):
        audio = {"path": name, "bytes": Path(media[name]).read_bytes()}
        rows = [{"audio": audio, "caption": "y" * (row + 1)} for row in range(shard + 1)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{shard}.parquet", row_group_size=1)
    for workers in (0, 2):
        build(DatasetSource(str(tmp_path / "*.parquet")), folder=f"{workers}-workers", workers=workers)
    one = contents(tmp_path / "0-workers")
    assert contents(tmp_path / "2-workers") == one and len(one) == 1 + 2 * 3


KILLS = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from small_pipelines import build_kind
from audiox_diffusers import atomic
from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data import cache_files, cache_pieces
from audiox_diffusers.training.data.encoding import RecordEncoder
from audiox_diffusers.training.data.latent_cache import LatentCache
from audiox_diffusers.training.data.records import RecordReader
from audiox_diffusers.training.data.sources import DatasetSource

folder, table = map(Path, sys.argv[1:])
torch.set_num_threads(1)
cache_files.ROWS = cache_pieces.ROWS = 2
cache_files.FILE_BYTES = 2**18
encoder = RecordEncoder(build_kind("audio_autoencoder"), torch.device("cpu"), "a picture")
columns = {name: name for name in ("audio", "video", "caption")}
reader = RecordReader(encoder.spec, [columns], MaskingConfig(), "random", 0.5, 0)
alone = SimpleNamespace(
    process_index=0, num_processes=1, is_main_process=True, is_local_main_process=False, wait_for_everyone=lambda: None
)

def build(name, moment=None):
    replace, save, calls = os.replace, cache_files.save_file, iter(range(1000))

    def dying(function):
        def call(*args):
            if next(calls) == moment:
                if function is save:  # half a file
                    Path(args[1]).write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)
        return call

    if moment is not None:
        atomic.os = SimpleNamespace(**{**vars(os), "replace": dying(replace)})
        cache_files.save_file = dying(save)
    cache = LatentCache(folder / name, {}, [DatasetSource(str(table))], reader, encoder)
    if not cache.complete:
        cache.build(0, alone)

for moment in range(10):
    child = os.fork()
    if not child:
        build("killed", moment)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"moment {moment}: {status}"
    print(sorted(path.name for path in (folder / "killed").rglob("*.json")))
build("killed")
build("whole")
"""


@pytest.mark.slow
def test_a_build_that_is_killed_ten_times(media, tmp_path):
    """SIGKILL before ten of the moments at which a file is written or appears. The finished cache is the same."""
    rows = [{"audio": media["short.wav"], "caption": "x" * row, "video": None} for row in range(5)]
    rows += [{"audio": None, "caption": "a clip", "video": media["clip.mp4"]}] * 2
    rows += [{"audio": media["long.wav"], "caption": "long", "video": None}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [str(Path(__file__).parents[2] / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, tmp_path, tmp_path / "rows.jsonl"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    seen = result.stdout.splitlines()
    assert len(seen) == 10 and len(set(seen)) > 2, "the builds go on where the one before was killed"
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == whole and len(whole) > 10


def test_hidden_files_of_the_user_are_kept(build, media, tmp_path):
    (tmp_path / "cache" / "source-000").mkdir(parents=True)
    own = [
        tmp_path / "cache" / ".profile",
        tmp_path / "cache" / "source-000" / ".nfs0001",
        tmp_path / "cache" / ".git",
    ]
    left = [tmp_path / "cache" / f".{'0a' * 16}.json", tmp_path / "cache" / "source-000" / f".{'ff' * 16}.safetensors"]
    left.append(tmp_path / "cache" / ".built-3")
    for path in (*own, *left):
        path.write_text("")
    build(Rows([{"audio": media["short.wav"]}]))
    assert all(path.exists() for path in own) and not any(path.exists() for path in left)


def test_an_error_leaves_the_cache_to_be_completed(build, encoder, media, monkeypatch, tmp_path):
    for module in (cache_files, cache_pieces):
        monkeypatch.setattr(module, "ROWS", 2)
    posterior, calls = encoder.posterior, []

    def fail(waveforms):
        calls.append(waveforms)
        if len(calls) == 4:
            raise MemoryError
        return posterior(waveforms)

    monkeypatch.setattr(encoder, "posterior", fail)
    rows = [{"audio": media["short.wav"], "caption": "x" * (row + 1)} for row in range(5)]
    with pytest.raises(MemoryError):
        build(Rows(rows))
    assert len(list((tmp_path / "cache").rglob("shard*.json"))) == 1
    (source,), _ = build(Rows(rows))
    assert len(list(source.rows(0))) == 5
    assert len(calls) == 4 + 3, "rows of complete parts are not encoded again"
    monkeypatch.setattr(encoder, "posterior", None)
    build(Rows(rows))


# What is refused


def test_a_cache_of_another_run(build, media):
    rows = Rows([{"audio": media["short.wav"]}])
    settings = {"--dataset": "clips", "--caption_column": "caption", "vae.ratios": [2, 4], "--revision": None}
    build(rows, settings=settings)
    build(rows, settings=dict(reversed(settings.items())))
    for changed, words in (
        (
            {"--caption_column": "none"},
            "of another run: --caption_column was caption and is none; choose another folder",
        ),
        (
            {"vae.ratios": [2, 8], "--revision": "v2"},
            "vae.ratios was [2, 4] and is [2, 8], --revision was none and is v2;",
        ),
        ({"--dataset": "c" * 50}, "of another run: --dataset differs; choose another folder, or delete this one"),
        (
            {f"new {n}": n for n in range(5)},
            "new 0 was none and is 0, new 1 was none and is 1, new 2 was none and is 2, 2 more;",
        ),
    ):
        with refused("--cache_latents", words) as error:
            build(rows, settings={**settings, **changed})
        assert len(error.message.splitlines()) == 1 and len(error.message) < 400


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ('{"of": {"crop": "random"}, "complete": true}', "has a cache of another version of audiox-diffusers"),
        ('{"version": 3, "settings": {}, "complete": true}', "has a cache of another version of audiox-diffusers"),
        ('{"version": 2, "sett', "cache.json is damaged"),
        ('["version", 2]', "cache.json is damaged"),
        ('{"version": 2, "complete": true}', "cache.json is damaged"),
    ],
)
def test_caches_that_cannot_be_used(build, media, tmp_path, description, words):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text(description)
    with refused("--cache_latents", words, "choose another folder, or delete this one"):
        build(Rows([{"audio": media["short.wav"]}]))


def test_a_cache_that_another_run_builds(build, media, tmp_path):
    (tmp_path / "cache").mkdir()
    with locked(tmp_path / "cache"), refused("--cache_latents", "cache is in use by another run"):
        build(Rows([{"audio": media["short.wav"]}]))


def test_processes_without_a_common_folder(encoder, media, tmp_path):
    """They would wait for each other forever."""
    second = SimpleNamespace(
        process_index=1, num_processes=2, is_main_process=False, is_local_main_process=True, wait_for_everyone=list
    )
    cache = LatentCache(tmp_path / "cache", {}, [Rows([{"audio": media["short.wav"]}])], reader_of(encoder), encoder)
    with refused("--cache_latents", "must be a folder that all processes of the run share"):
        cache.build(0, second)


def test_which_options_a_cache_depends_on(train, small_model, scenes, tmp_path, capsys):
    cache = tmp_path / "cache"
    losses = train("first", 1, "--cache_latents", cache)
    (tmp_path / "other").symlink_to(small_model)
    (tmp_path / "data").symlink_to(scenes)
    for option, value, named in (
        ("caption_column", "none", "--caption_column was caption and is none"),
        ("pretrained_model_name_or_path", tmp_path / "other", "--pretrained_model_name_or_path differs"),
        ("dataset", tmp_path / "data", "--dataset differs"),
        (
            "mixed_precision",
            "bf16",
            "the encoders' precision (--mixed_precision) was float32 and is bfloat16;",
        ),
    ):
        with refused("--cache_latents", "has a cache of another run", named):
            train("out", 1, "--cache_latents", cache, f"--{option}", value)
    capsys.readouterr()
    assert train("again", 1, "--cache_latents", cache) == losses
    for option in (("--crop", "start"), ("--seed", 1), ("--min_seconds", 1.5), ("--video_prompt", "a film")):
        options = ["--task_weights", "text=0", "--learning_rate", 1e-4, "--use_ema", *option]
        assert len(train("out", 1, "--cache_latents", cache, *options)) == 1
    assert "Cache" not in capsys.readouterr().out, "the size is only said of a cache that is built"


def test_the_size_is_said_beforehand(train, tmp_path, capsys):
    cache = tmp_path / "cache"
    train("out", 1, "--cache_latents", cache)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Cache ")]
    assert line.startswith(f"Cache {cache}: about ") and "for 7 records; " in line and line.endswith(" are free")
    words = line.split("about ")[1].split()
    assert words[1] == "MB"
    size = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    assert float(words[0]) * 1e6 == pytest.approx(size, rel=0.15)
