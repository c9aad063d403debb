"""Files that claim or hold more than memory can take."""

import subprocess
import sys
import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image

from audiox_diffusers.media import (
    MediaError,
    load_audio,
    load_image,
    load_video,
    media_duration,
    resample_audio,
    save_audio,
    save_video,
)


def write_wave(path, rate, seconds=1.0, channels=1, claimed=None):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(claimed or rate)
        sound = 9000 * np.sin(2 * np.pi * 440 / rate * np.arange(round(rate * seconds)))
        file.writeframes(np.repeat(sound.astype("<i2")[:, None], channels, axis=1).tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".tiff", ".bmp"])
def test_pixels_of_a_picture(tmp_path, suffix):
    Image.new("RGB", (300, 200)).save(tmp_path / f"picture{suffix}")
    for load in (load_image, load_video):
        assert load(tmp_path / f"picture{suffix}", max_pixels=60_000).shape[-2:] == (200, 300)
        with pytest.raises(MediaError, match=r"has 300x200 pixels, more than `max_pixels` \(59999\)"):
            load(tmp_path / f"picture{suffix}", max_pixels=59_999)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (12_000, 12_000)).save(tmp_path / "picture.png")
    for load in (load_image, load_video, media_duration):
        with pytest.raises(MediaError, match="12000x12000 pixels"):
            load(tmp_path / "picture.png")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pixels_of_a_video(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    save_video(path, np.zeros((2, 200, 300, 3), np.uint8), fps=5)
    assert load_video(path, max_pixels=60_000).shape[-2:] == (200, 300)
    with pytest.raises(MediaError, match=r"300x200 pixels, more than `max_pixels` \(59999\)"):
        load_video(path, max_pixels=59_999)


def test_size_of_a_film_that_only_its_header_claims(tmp_path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("rawvideo", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuv420p")
        target.mux([*stream.encode(frame), *stream.encode(None)])
    content = bytearray(path.read_bytes())
    at = content.index(b"strf") + 12
    content[at : at + 8] = np.array([30_000, 30_000], "<i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(MediaError, match="30000x30000 pixels|nothing in its video stream"):
        load_video(path)


def test_size_of_the_result(tmp_path):
    save_video(tmp_path / "clip.mp4", np.zeros((20, 48, 64, 3), np.uint8), fps=10)
    assert load_video(tmp_path / "clip.mp4", fps=10, max_bytes=20 * 48 * 64 * 3).shape[0] == 20
    with pytest.raises(MediaError, match="max_bytes"):
        load_video(tmp_path / "clip.mp4", fps=10, max_bytes=20 * 48 * 64 * 3 - 1)
    with pytest.raises(MediaError, match="max_bytes"):
        load_video(tmp_path / "clip.mp4", fps=1e6, size=(4, 4), max_bytes=10_000)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".m4a"])
def test_duration_of_a_sound(tmp_path, suffix):
    path = tmp_path / f"sound{suffix}"
    save_audio(path, torch.zeros(1, 48000 * 5), 48000)
    assert load_audio(path, max_duration=5.1)[0].shape[1] >= 48000 * 5
    assert load_audio(path, duration=2, max_duration=2)[0].shape[1] == 48000 * 2
    assert load_audio(path, start=3.5, max_duration=2)[0].shape[1] >= 48000 * 1.5
    for window in ({}, {"start": 1}, {"duration": 4}):
        with pytest.raises(MediaError, match=r"longer than `max_duration` \(2 s\)"):
            load_audio(path, max_duration=2, **window)


def test_hours_of_sound_are_refused_whole_and_read_in_parts(tmp_path):
    silence = (np.zeros((1, 1000 * 600), np.float32) for _ in range(7))
    save_audio(tmp_path / "long.flac", silence, 1000)
    with pytest.raises(MediaError, match=r"max_duration` \(3600 s\)"):
        load_audio(tmp_path / "long.flac")
    assert load_audio(tmp_path / "long.flac", start=4000, duration=3)[0].shape == (1, 3000)
    assert load_audio(tmp_path / "long.flac", max_duration=5000)[0].shape == (1, 1000 * 4200)


def test_channels(tmp_path):
    path = write_wave(tmp_path / "many.wav", 8000, 0.1, channels=100)
    with pytest.raises(MediaError, match=r"has 100 channels, more than `max_channels` \(64\)"):
        load_audio(path)
    path = write_wave(tmp_path / "some.wav", 8000, 0.1, channels=8)
    assert load_audio(path, max_channels=8)[0].shape == (8, 800)
    with pytest.raises(MediaError, match="max_channels"):
        load_audio(path, max_channels=7)


@pytest.mark.parametrize("claimed", [1, 99, 768_001, 1_999_993, 2**31 - 1])
@pytest.mark.parametrize("read", [load_audio, media_duration])
def test_absurd_sampling_rates_of_a_file(tmp_path, read, claimed):
    with pytest.raises(MediaError, match=rf"sampling rate is {claimed} Hz|not a sound"):
        read(write_wave(tmp_path / "sound.wav", 16000, claimed=claimed))


@pytest.mark.parametrize("name", ["max_pixels", "max_bytes"])
def test_limits_are_checked(name):
    with pytest.raises(ValueError, match=name):
        load_video("missing.mp4", **{name: 0})


# Odd sampling rates


ODD = [
    (16001, 16000),
    (44101, 44100),
    (44100, 44099),
    (22254, 44100),
    (767_999, 48_000),
    (101, 44_100),
    (47_952, 48_001),
]


@pytest.mark.parametrize("rates", ODD)
def test_odd_rates_keep_a_tone(rates):
    orig, new = rates
    frequency = 0.1 * min(orig, new)
    sound = torch.sin(2 * torch.pi * frequency / orig * torch.arange(orig, dtype=torch.float64)).float()
    resampled = resample_audio(torch.stack([sound, -sound])[None], orig, new)
    assert resampled.shape == (1, 2, new) and torch.equal(resampled[:, 0], -resampled[:, 1])
    ideal = torch.sin(2 * torch.pi * frequency / new * torch.arange(new, dtype=torch.float64))
    inner = slice(new // 5, -new // 5)
    assert (resampled[0, 0, inner] - ideal[inner]).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_odd_rates_keep_the_type(dtype):
    resampled = resample_audio(torch.zeros(3, 1000, dtype=dtype), 16001, 16000)
    assert resampled.dtype == dtype and resampled.shape == (3, 1000)


def test_odd_rates_take_little_memory(tmp_path):
    code = """
import resource, sys
from audiox_diffusers.media import load_audio
load_audio(sys.argv[1], 16000, duration=0.01)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path, rate in zip(sys.argv[1::2], sys.argv[2::2]):
    assert load_audio(path, int(rate))[0].shape[1] == int(rate), path
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    arguments = []
    for orig, new in [(16001, 16000), (44101, 44100), (767_999, 44_100), (11_027, 48_000)]:
        arguments += [str(write_wave(tmp_path / f"{orig}.wav", orig)), str(new)]
    arguments = ["-c", code, *arguments]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 100_000  # kB


def test_usual_rates_are_resampled_by_torchaudio():
    from torchaudio.functional import resample

    sound = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    for orig in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000):
        for new in (16000, 32000, 44100, 48000):
            assert torch.equal(resample_audio(sound, orig, new), sound if orig == new else resample(sound, orig, new))
