import av
import numpy as np
import pytest
from helpers import tone

from audiox_diffusers.media import MediaBytes, MediaError, load_audio, media_duration, save_audio, save_video


def black(seconds):
    return np.zeros((round(24 * seconds), 24, 32, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a"])
def test_sound(tmp_path, suffix):
    path = tmp_path / f"sound{suffix}"
    save_audio(path, tone(3.3, 24000), 24000)
    # Opus includes its encoder's delay of 6.5 ms.
    assert media_duration(path) == pytest.approx(3.3, abs=0.007 if suffix == ".ogg" else 1e-6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("seconds", [1.5, 2.5])
def test_sound_is_preferred_to_picture(tmp_path, suffix, seconds):
    path = tmp_path / f"clip{suffix}"
    save_video(path, black(2), tone(seconds, 16000), 16000, fps=24)
    # Matroska declares no duration of the sound, and decoded AAC fills its last block.
    rest = 1024 / 16000 if suffix == ".mkv" else 1e-6
    assert 0 <= media_duration(path) - seconds < rest


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_silent_video(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    save_video(path, black(2), fps=24)
    assert media_duration(path) == 2


def test_declared_duration_needs_no_decoding(tmp_path):
    save_audio(tmp_path / "sound.flac", tone(3.3, 24000), 24000)
    content = (tmp_path / "sound.flac").read_bytes()
    assert media_duration(MediaBytes(content[: len(content) // 2])) == pytest.approx(3.3)


@pytest.mark.parametrize("name, muxer", [("sound.mp3", "mp3"), ("sound.aac", "adts")])
def test_sound_without_a_header_is_decoded(tmp_path, name, muxer):
    # Silence takes fewer bits than noise, so the bit rate at the start misleads.
    sound = np.zeros((1, 10 * 24000), np.float32)
    sound[:, 5 * 24000 :] = 0.3 * np.random.default_rng(0).standard_normal(5 * 24000)
    path = tmp_path / name
    options = {"write_xing": "0"} if muxer == "mp3" else {}
    with av.open(str(path), "w", format=muxer, options=options) as target:
        stream = target.add_stream("libmp3lame" if muxer == "mp3" else "aac", rate=24000, layout="mono")
        stream.codec_context.qscale = True
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate = 24000
        target.mux([*stream.encode(frame), *stream.encode(None)])
    waveform, rate = load_audio(path)
    assert media_duration(path) == pytest.approx(waveform.shape[1] / rate, abs=1e-6)


def test_video_without_a_declared_duration(tmp_path):
    save_video(tmp_path / "clip.mp4", black(2), fps=24)
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "clip.h264"), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    assert media_duration(tmp_path / "clip.h264") == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".mp4", ".mkv"])
def test_bytes(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    if suffix in (".mp4", ".mkv"):
        save_video(path, black(2), tone(1.5, 16000), 16000, fps=24)
    else:
        save_audio(path, tone(1.5, 16000), 16000)
    assert media_duration(MediaBytes(path.read_bytes())) == media_duration(path)


def test_unusable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
        media_duration(tmp_path / "missing.mp4")
    with pytest.raises(IsADirectoryError):
        media_duration(tmp_path)
    for content in (b"", b"words " * 200, np.random.default_rng(0).bytes(5000)):
        with pytest.raises(MediaError, match="^row 3: "):
            media_duration(MediaBytes(content, "row 3"))


def test_nothing_can_be_decoded(tmp_path):
    with av.open(str(tmp_path / "sound.aac"), "w", format="adts") as target:
        stream = target.add_stream("aac", rate=24000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 24000
        target.mux([*stream.encode(frame), *stream.encode(None)])
    # Keep only the headers: 7 bytes of each packet.
    with av.open(str(tmp_path / "sound.aac")) as source:
        headers = b"".join(bytes(packet)[:7] + bytes(packet.size - 7) for packet in source.demux() if packet.size)
    (tmp_path / "sound.aac").write_bytes(headers)
    with pytest.raises(MediaError, match="nothing in its audio stream can be decoded"):
        media_duration(tmp_path / "sound.aac")
