import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from audiox_diffusers.media import MediaError, load_audio, load_video, save_audio, save_video


def tone(rate=16000, seconds=1.0, level=0.5):
    return level * torch.sin(2 * torch.pi * 440 / rate * torch.arange(round(rate * seconds)))[None]


def click(rate, at, seconds=1.0):
    waveform = torch.zeros(1, round(rate * seconds))
    waveform[:, round(rate * at) :] = 0.5
    return waveform


def write_video(path, count=48, rate=24, codec="libx264", offset=0, rotation=None, stamps=None, **options):
    """Write grey frames with levels 0, 4, 8, ... Stamps are in units of 1/rate s."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), index * 4, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (stamps[index] if stamps else index) + offset, 1 / Fraction(rate)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def packets(path):
    """Return the bytes and the time in seconds of each picture packet, in stored order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stored = [packet for packet in container.demux(stream) if packet.size]
        return [bytes(packet) for packet in stored], [float(packet.pts * packet.time_base) for packet in stored]


def streams(path):
    with av.open(str(path)) as container:
        return [stream.type for stream in container.streams]


# Copied pictures


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source", [".mp4", ".mkv"])
def test_picture_is_copied(tmp_path, source, suffix):
    path = write_video(tmp_path / f"source{source}", bf="2")
    target = tmp_path / f"target{suffix}"

    save_video(target, path, tone(44100, 2.0))

    (before, stamps), (after, new_stamps) = packets(path), packets(target)
    assert after == before and len(after) == 48
    assert new_stamps == pytest.approx(stamps, abs=0.001)
    assert torch.equal(load_video(target), load_video(path))
    assert streams(target) == ["video", "audio"]
    with av.open(str(target)) as container:
        decoding_times = [packet.dts for packet in container.demux(video=0) if packet.dts is not None]
        assert all(earlier < later for earlier, later in zip(decoding_times, decoding_times[1:]))
        assert container.duration / av.time_base == pytest.approx(2.0, abs=0.03)


def test_old_sound_is_dropped(tmp_path):
    save_video(tmp_path / "old.mp4", torch.zeros(24, 3, 24, 32), tone(44100), 44100, fps=24)
    save_video(tmp_path / "silent.mp4", tmp_path / "old.mp4")
    assert streams(tmp_path / "silent.mp4") == ["video"]
    save_video(tmp_path / "new.mp4", tmp_path / "old.mp4", torch.zeros(2, 16000), 16000)
    assert streams(tmp_path / "new.mp4") == ["video", "audio"]
    waveform, rate = load_audio(tmp_path / "new.mp4")
    assert rate == 16000 and waveform.shape[0] == 2 and waveform.abs().max() < 1e-3
    assert packets(tmp_path / "new.mp4") == packets(tmp_path / "old.mp4")


@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_picture_and_sound_keep_their_durations(tmp_path, seconds):
    path = write_video(tmp_path / "source.mp4")
    save_video(tmp_path / "target.mp4", path, tone(16000, seconds), 16000)
    assert packets(tmp_path / "target.mp4") == packets(path)
    waveform, _ = load_audio(tmp_path / "target.mp4")
    assert 0 <= waveform.shape[1] - 16000 * seconds < 1024


@pytest.mark.parametrize("offset", [0, 36, -12])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_begins_with_the_first_frame(tmp_path, suffix, offset):
    # With a negative offset, the muxer hides frames by an edit list.
    path = write_video(tmp_path / "source.mp4", offset=offset)
    target = tmp_path / f"target{suffix}"
    if offset < 0 and suffix == ".mkv":
        with pytest.raises(MediaError, match=r"edit list, which \.mkv cannot hold"):
            save_video(target, path, click(44100, 0.5))
        assert os.listdir(tmp_path) == ["source.mp4"]
        return

    save_video(target, path, click(44100, 0.5))

    assert packets(target)[0] == packets(path)[0]
    assert torch.equal(load_video(target, fps=24, duration=None), load_video(path, fps=24, duration=None))
    with av.open(str(target)) as container:
        onset = None
        shown = next(container.decode(video=0)).time
        container.seek(0)
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.25)
            if len(loud) and onset is None:
                onset = frame.time + loud[0] / frame.sample_rate
    assert shown == pytest.approx(0, abs=0.001)
    assert onset == pytest.approx(0.5, abs=0.005)


def test_picture_and_sound_are_interleaved(tmp_path):
    save_video(tmp_path / "target.mp4", write_video(tmp_path / "source.mp4", 30, 1, g="4"), tone(44100, 30.0))
    with av.open(str(tmp_path / "target.mp4")) as container:
        stored = sorted((packet for packet in container.demux() if packet.size), key=lambda packet: packet.pos)
    times = [float(packet.dts * packet.time_base) for packet in stored]
    assert max(max(times[: index + 1]) - time for index, time in enumerate(times)) < 2.1


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_is_kept(tmp_path, suffix):
    path = write_video(tmp_path / "source.mp4", 4, rotation=90)
    save_video(tmp_path / f"target{suffix}", path, tone())
    with av.open(str(tmp_path / f"target{suffix}")) as container:
        assert next(container.decode(video=0)).rotation == 90
    assert load_video(tmp_path / f"target{suffix}").shape[-2:] == (32, 24)


def test_variable_frame_rate_is_kept(tmp_path):
    path = write_video(tmp_path / "source.mp4", 6, stamps=[0, 1, 5, 6, 20, 21])
    save_video(tmp_path / "target.mp4", path, tone())
    assert packets(tmp_path / "target.mp4") == packets(path)


def test_target_may_be_the_source(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    before = packets(path)
    save_video(path, path, tone(44100))
    assert packets(path) == before and streams(path) == ["video", "audio"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_codec_that_does_not_fit(tmp_path, suffix):
    path = write_video(tmp_path / "source.webm", codec="libvpx")
    with pytest.raises(MediaError, match=rf"source\.webm: \{suffix} cannot hold its picture codec, try \.mkv"):
        save_video(tmp_path / f"target{suffix}", path, tone())
    assert os.listdir(tmp_path) == ["source.webm"]
    save_video(tmp_path / "target.mkv", path, tone())
    assert packets(tmp_path / "target.mkv") == packets(path)


def test_unusable_source(tmp_path):
    save_audio(tmp_path / "sound.wav", tone(), 16000)
    with pytest.raises(MediaError, match="no video stream"):
        save_video(tmp_path / "target.mp4", tmp_path / "sound.wav", tone())
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
        save_video(tmp_path / "target.mp4", tmp_path / "missing.mp4", tone())
    with pytest.raises(ValueError, match="fps"):
        save_video(tmp_path / "target.mp4", write_video(tmp_path / "source.mp4", 2), tone(), fps=24)
    assert sorted(os.listdir(tmp_path)) == ["sound.wav", "source.mp4"]


# Frames


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("fps", [5, 23.976, 30000 / 1001])
def test_frames_are_encoded(tmp_path, suffix, fps):
    levels = torch.arange(12) * 20
    frames = levels.to(torch.uint8)[:, None, None, None].expand(12, 3, 24, 32)
    save_video(tmp_path / f"clip{suffix}", frames, tone(), 16000, fps=fps)

    with av.open(str(tmp_path / f"clip{suffix}")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        decoded = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    assert [time for time, _ in decoded] == pytest.approx([k / fps for k in range(12)], abs=0.001)
    assert [level for _, level in decoded] == pytest.approx(levels.tolist(), abs=3)
    assert streams(tmp_path / f"clip{suffix}") == ["video", "audio"]


def test_all_types_of_frames_agree(tmp_path):
    frames = torch.arange(4 * 3 * 24 * 32).reshape(4, 3, 24, 32).div(36).to(torch.uint8)
    kinds = {
        "uint8": frames,
        "float": frames / 255,
        "array": frames.permute(0, 2, 3, 1).numpy(),
        "float array": frames.permute(0, 2, 3, 1).double().numpy() / 255,
    }
    for name, kind in kinds.items():
        save_video(tmp_path / f"{name}.mp4", kind, fps=8)
        loaded = load_video(tmp_path / f"{name}.mp4", fps=8)
        assert (loaded.int() - frames.int()).abs().max() < 12


def test_colours(tmp_path):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50]], dtype=torch.uint8)
    save_video(tmp_path / "clip.mp4", colours[:, :, None, None].expand(4, 3, 24, 32), fps=4)
    loaded = load_video(tmp_path / "clip.mp4", fps=4).float().mean(dim=(2, 3))
    assert (loaded - colours).abs().max() < 6


def test_odd_sizes_repeat_the_edge(tmp_path):
    frames = torch.full((2, 3, 25, 33), 200, dtype=torch.uint8)
    save_video(tmp_path / "clip.mp4", frames, fps=2)
    loaded = load_video(tmp_path / "clip.mp4", fps=2)
    assert loaded.shape == (2, 3, 26, 34)
    assert (loaded.int() - 200).abs().max() <= 3


@pytest.mark.parametrize(
    "video, fps, message",
    [
        (torch.zeros(2, 3, 24, 32), None, "fps"),
        (torch.zeros(2, 3, 24, 32), 0, "fps"),
        (torch.zeros(2, 3, 24, 32), float("nan"), "fps"),
        (torch.zeros(2, 3, 24, 32), 1e-6, "fps"),
        (torch.zeros(0, 3, 24, 32), 5, "shape"),
        (torch.zeros(3, 24, 32), 5, "shape"),
        (torch.zeros(2, 24, 32, 3), 5, "shape"),
        (np.zeros((2, 3, 24, 32), np.uint8), 5, "shape"),
        (torch.full((2, 3, 24, 32), 1.5), 5, "0..1"),
        (torch.full((2, 3, 24, 32), float("nan")), 5, "0..1"),
        (torch.zeros(2, 3, 24, 32, dtype=torch.int32), 5, "uint8"),
    ],
)
def test_frames_refused(tmp_path, video, fps, message):
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / "clip.mp4", video, fps=fps)
    assert not os.listdir(tmp_path)


# Sound


@pytest.mark.parametrize("form", [torch.float32, torch.float64, torch.bfloat16, "array", "flat"])
def test_types_of_waveform(tmp_path, form):
    waveform = torch.tensor([[0.0, 0.5, -0.5, 1.0, -1.0, 0.75 / 32768]])
    expected = torch.tensor([[0.0, 0.5, -0.5, 32767 / 32768, -1.0, 1 / 32768]])
    given = {"array": waveform.double().numpy(), "flat": waveform[0]}.get(form)
    save_audio(tmp_path / "sound.wav", waveform.to(form) if given is None else given, 8000)
    loaded, rate = load_audio(tmp_path / "sound.wav")
    assert rate == 8000 and torch.equal(loaded, expected)


def test_upper_case_extension(tmp_path):
    save_audio(tmp_path / "SOUND.WAV", tone(), 16000)
    assert load_audio(tmp_path / "SOUND.WAV")[0].shape == (1, 16000)


@pytest.mark.parametrize("suffix", [".wav", ".mp4"])
def test_clipping_warns_once(tmp_path, caplog, suffix):
    waveform = tone().repeat(2, 1)
    waveform[0, 100:103] = torch.tensor([1.5, -2.25, 1.01])
    if suffix == ".wav":
        save_audio(tmp_path / "sound.wav", waveform, 16000)
        loaded, _ = load_audio(tmp_path / "sound.wav")
        assert loaded[0, 100:103].tolist() == [32767 / 32768, -1, 32767 / 32768]
    else:
        save_video(tmp_path / "clip.mp4", torch.zeros(4, 3, 24, 32), waveform, 16000, fps=4)
    assert len(caplog.records) == 1
    assert "3 of 32000 samples" in caplog.text and "2.250" in caplog.text
    assert waveform.max() == 1.5

    caplog.clear()
    save_audio(tmp_path / "full.wav", torch.tensor([1.0, -1.0]), 16000)
    assert not caplog.records


BAD_WAVEFORMS = [
    (torch.tensor([[0.0, float("nan")]]), "NaN"),
    (torch.tensor([[0.0, float("inf")]]), "NaN"),
    (torch.zeros(2, 0), "empty"),
    (torch.zeros(0), "empty"),
    (torch.zeros(1, 2, 100), "shape"),
    (torch.zeros(100, 2), "shape"),
    (torch.zeros(0, 100), "shape"),
    (torch.zeros(2, 100, dtype=torch.int16), "floating point"),
]


@pytest.mark.parametrize("waveform, message", BAD_WAVEFORMS)
def test_waveform_refused(tmp_path, waveform, message):
    with pytest.raises(ValueError, match=message):
        save_audio(tmp_path / "sound.wav", waveform, 16000)
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / "clip.mp4", torch.zeros(4, 3, 24, 32), waveform, 16000, fps=4)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 44100.5])
def test_sampling_rate_refused(tmp_path, rate):
    with pytest.raises(ValueError, match="sampling_rate"):
        save_audio(tmp_path / "sound.wav", tone(), rate)
    with pytest.raises(ValueError, match="sampling_rate"):
        save_video(tmp_path / "clip.mp4", torch.zeros(4, 3, 24, 32), tone(), rate, fps=4)


def test_too_many_channels_for_the_format(tmp_path):
    for suffix in (".mp3", ".ogg", ".opus"):
        with pytest.raises(ValueError, match=rf"3 channels, but \{suffix} holds at most 2"):
            save_audio(tmp_path / f"sound{suffix}", torch.zeros(3, 1000), 16000)


def test_unknown_extension(tmp_path):
    with pytest.raises(ValueError, match=r"'\.aiff'.*\.wav, \.flac, \.mp3"):
        save_audio(tmp_path / "sound.aiff", tone(), 16000)
    with pytest.raises(ValueError, match=r"'\.avi'.*\.mp4, \.mov, \.mkv"):
        save_video(tmp_path / "clip.avi", torch.zeros(4, 3, 24, 32), fps=4)


# The target


SAVERS = {
    "sound.wav": lambda path: save_audio(path, tone(seconds=2), 16000),
    "clip.mp4": lambda path: save_video(path, torch.zeros(4, 3, 24, 32), tone(seconds=2), 16000, fps=4),
}


@pytest.mark.parametrize("name", SAVERS)
def test_folder_is_checked_first(tmp_path, name, monkeypatch):
    save = SAVERS[name]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        save(tmp_path / "nowhere" / name)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file: not a folder"):
        save(tmp_path / "file" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        save(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(PermissionError, match="not writable"):
        save(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted(["file", name])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", SAVERS)
def test_interrupted_write_leaves_the_old_file(tmp_path, name, error, monkeypatch):
    (tmp_path / name).write_bytes(b"old")
    begun = []

    def interrupted(*args, **kwargs):
        begun.extend(other for other in os.listdir(tmp_path) if other != name)
        raise error

    # The first second is in the file when the next one fails.
    real = av.AudioFrame.from_ndarray
    calls = iter([real, interrupted])
    frame = type("Frame", (), {"from_ndarray": staticmethod(lambda *args, **kwargs: next(calls)(*args, **kwargs))})
    monkeypatch.setattr("audiox_diffusers.media.tracks.AudioFrame", frame)
    with pytest.raises(error):
        SAVERS[name](tmp_path / name)
    assert len(begun) == 1 and begun[0].startswith(".") and begun[0].endswith(name[-4:])
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", SAVERS)
def test_failed_replacement_leaves_the_old_file(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"old")

    def interrupted(temporary, path):
        assert os.path.dirname(temporary) == str(tmp_path) and os.path.getsize(temporary) > 0
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SAVERS[name](tmp_path / name)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", SAVERS)
def test_existing_file_is_replaced(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")
    SAVERS[name](tmp_path / name)
    assert load_audio(tmp_path / name)[1] == 16000
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".ogg"])
def test_bit_rate_of_lossy_formats(tmp_path, suffix):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 44100).astype(np.float32)
    sizes = []
    for bit_rate in (32_000, 64_000, 128_000):
        save_audio(tmp_path / f"sound{suffix}", sound, 44100, bit_rate=bit_rate)
        sizes.append((tmp_path / f"sound{suffix}").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    if suffix == ".mp3":
        assert sizes == pytest.approx([12_000, 24_000, 48_000], rel=0.1)


def test_bit_rate_refused(tmp_path):
    sound = np.zeros(100, np.float32)
    with pytest.raises(ValueError, match=r"bit_rate.*64000.*\.wav"):
        save_audio(tmp_path / "sound.wav", sound, 16000, bit_rate=64_000)
    with pytest.raises(ValueError, match="bit_rate.*-1"):
        save_audio(tmp_path / "sound.mp3", sound, 16000, bit_rate=-1)
    assert not any(tmp_path.iterdir())
