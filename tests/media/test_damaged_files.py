import av
import numpy as np
import pytest
import torch

from audiox_diffusers.media import MediaError, load_audio, load_video, save_audio, save_video


@pytest.fixture
def clip(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 24, 32, 3), dtype=np.uint8)
    tone = 0.5 * torch.sin(torch.arange(32000) * 0.05)
    save_video(tmp_path / "clip.mp4", noise, tone, 16000, fps=24)
    return tmp_path / "clip.mp4"


def index_first(source_path, path):
    """Copy a file with its index at the front, so that it can be read without its end."""
    with (
        av.open(str(source_path)) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        copies = [target.add_stream_from_template(stream, opaque=True) for stream in source.streams]
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                target.mux(packet)
    return path


@pytest.mark.parametrize("load", [load_video, load_audio])
def test_unusable_files(tmp_path, clip, load):
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
        load(tmp_path / "missing.mp4")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"words " * 200,
        "text.txt": b"words\n" * 200,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "cut.mp4": clip.read_bytes()[: clip.stat().st_size // 2],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as caught:
            load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


def test_nothing_can_be_decoded(tmp_path, clip):
    content = clip.read_bytes()
    begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    (tmp_path / "zeroed.mp4").write_bytes(content[:begin] + bytes(end - begin) + content[end:])
    with pytest.raises(MediaError, match="nothing in its video stream"):
        load_video(tmp_path / "zeroed.mp4")


def test_missing_end(tmp_path, clip, caplog):
    content = index_first(clip, tmp_path / "front.mp4").read_bytes()
    (tmp_path / "front.mp4").write_bytes(content[: len(content) * 2 // 3])
    frames = load_video(tmp_path / "front.mp4", fps=24)
    assert 20 < len(frames) < 40
    assert torch.equal(frames[:20], load_video(clip, fps=24)[:20])
    assert len(caplog.records) == 1 and "front.mp4" in caplog.text


def test_damaged_middle_of_a_video(tmp_path, clip, caplog):
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    (tmp_path / "damaged.mp4").write_bytes(content)
    frames = load_video(tmp_path / "damaged.mp4", fps=24)
    assert torch.equal(frames[:15], load_video(clip, fps=24)[:15])
    assert len(caplog.records) == 1 and "damaged.mp4" in caplog.text


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".opus", ".m4a"])
def test_damaged_middle_of_a_sound(tmp_path, caplog, suffix):
    path = tmp_path / f"sound{suffix}"
    save_audio(path, 0.5 * torch.sin(torch.arange(48000 * 4) * 0.05), 48000)
    whole, _ = load_audio(path)
    assert not caplog.records
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = np.random.default_rng(0).bytes(len(content) // 10)
    path.write_bytes(content)
    waveform, _ = load_audio(path)
    assert 96000 < waveform.shape[1] <= whole.shape[1]
    assert torch.equal(waveform[:, :48000], whole[:, :48000])
    assert len(caplog.records) == 1 and str(path) in caplog.text
