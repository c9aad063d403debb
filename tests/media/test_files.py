import pickle

import av
import numpy as np
import pytest
import torch
from helpers import tone
from PIL import Image

from audiox_diffusers.media import (
    MediaBytes,
    MediaError,
    containers,
    load_audio,
    load_image,
    load_video,
    media_duration,
    save_audio,
    save_video,
)


@pytest.fixture
def clip(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 24, 32, 3), dtype=np.uint8)
    save_video(tmp_path / "clip.mp4", noise, tone(4), 16000, fps=24)
    return tmp_path / "clip.mp4"


def in_memory(path, name=None):
    return MediaBytes(path.read_bytes(), str(path) if name is None else name)


@pytest.mark.parametrize("name", [None, "bytes"])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".m4a"])
def test_sound_from_bytes_is_that_of_the_file(tmp_path, suffix, name):
    path = tmp_path / f"sound{suffix}"
    save_audio(path, tone(2, 24000), 24000)
    expected, expected_rate = load_audio(path, 16000, channels=2, start=0.3, duration=1.1)
    waveform, rate = load_audio(in_memory(path, name), 16000, channels=2, start=0.3, duration=1.1)
    assert rate == expected_rate and torch.equal(waveform, expected)


@pytest.mark.parametrize("name", [None, "bytes"])
def test_video_from_bytes_is_that_of_the_file(clip, name):
    source = in_memory(clip, name)
    assert torch.equal(load_video(source, fps=24, duration=None), load_video(clip, fps=24, duration=None))
    assert torch.equal(load_video(source, start=3, duration=0.5, size=(8, 8)), load_video(clip, 5, 3, 0.5, (8, 8)))
    assert torch.equal(load_audio(source)[0], load_audio(clip)[0])


def test_video_that_cannot_seek_is_read_from_the_start(tmp_path, clip):
    with av.open(str(clip)) as source, av.open(str(tmp_path / "clip.h264"), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    frames = load_video(in_memory(tmp_path / "clip.h264"), start=3, duration=0.5)
    assert len(frames) == 2
    assert torch.equal(frames, load_video(tmp_path / "clip.h264", start=3, duration=0.5))


def test_image_from_bytes_is_that_of_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    image = load_image(in_memory(tmp_path / "image.png", "bytes"))
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("load", [load_audio, load_video, load_image])
def test_same_errors_as_for_files(tmp_path, clip, load):
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"words " * 200,
        "text.txt": b"words\n" * 200,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "cut.mp4": clip.read_bytes()[: clip.stat().st_size // 2],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as of_file:
            load(tmp_path / name)
        with pytest.raises(MediaError) as of_bytes:
            load(MediaBytes(content, str(tmp_path / name)))
        assert str(of_bytes.value) == str(of_file.value)


def test_damage_has_the_same_effect_as_in_files(tmp_path, clip, caplog):
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    clip.write_bytes(content)
    frames = load_video(MediaBytes(bytes(content), "shard.tar, row 3"), fps=24)
    assert len(caplog.records) == 1 and "shard.tar, row 3: the file is damaged" in caplog.text
    assert torch.equal(frames, load_video(clip, fps=24))


def test_bytes_cannot_open_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_audio("other.wav", tone(0.1), 16000)
    with pytest.raises(MediaError, match="^row 3: "):
        load_audio(MediaBytes(b"ffconcat version 1.0\nfile other.wav\n", "row 3"))


def test_messages_show_the_name():
    source = MediaBytes(b"data", "row 3")
    assert str(source) == f"{source}" == "row 3" and "data" not in repr(source)
    assert str(MediaBytes(b"data")) == "bytes"


def test_bytes_can_be_pickled(tmp_path):
    save_audio(tmp_path / "sound.wav", tone(0.1), 16000)
    source = in_memory(tmp_path / "sound.wav")
    load_audio(source)
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source and torch.equal(load_audio(copy)[0], load_audio(source)[0])


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_opening_without_decoding_changes_nothing(tmp_path, monkeypatch, codec, suffix):
    path = tmp_path / f"clip{suffix}"
    pictures = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    with av.open(str(path), "w") as target:
        options = {"bf": "3", "x265-params": "log-level=none"} if codec != "mpeg4" else {}
        stream = target.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in pictures:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(stream.encode(None))

    def read():
        return media_duration(path), load_video(path, fps=25, duration=None), load_video(path, fps=25, start=0.5)

    found = read()
    monkeypatch.setattr(containers, "_shortcuts", lambda file: ({}, {}))
    expected = read()
    assert found[0] == expected[0] and all(map(torch.equal, found[1:], expected[1:]))


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_mulaw", "adpcm_ms"])
@pytest.mark.parametrize("junk", [0, 300_000], ids=["plain", "long header"])
def test_opening_wav_without_reading_much_changes_nothing(tmp_path, monkeypatch, codec, junk):
    path = tmp_path / "sound.wav"
    samples = np.round(8000 * np.sin(np.arange(200_000) / 20)).astype(np.int16)[None]
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48000
        for part in av.AudioResampler(stream.format.name, "mono", 48000, stream.frame_size or 1024).resample(frame):
            target.mux(stream.encode(part))
        target.mux(stream.encode(None))
    if junk:
        data = path.read_bytes()
        path.write_bytes(data[:12] + b"JUNK" + junk.to_bytes(4, "little") + bytes(junk) + data[12:])

    def read():
        return media_duration(path), load_audio(path)[0], load_audio(path, start=2.0, duration=0.5)[0]

    found = read()
    assert found[1].shape[1] >= 199_000
    monkeypatch.setattr(containers, "_shortcuts", lambda file: ({}, {}))
    expected = read()
    assert found[0] == expected[0] and all(map(torch.equal, found[1:], expected[1:]))
