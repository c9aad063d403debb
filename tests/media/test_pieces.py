"""Sound written piece by piece."""

import math
import weakref

import numpy as np
import pytest
import torch

from audiox_diffusers.media import load_audio, save_audio, save_video
from audiox_diffusers.media.resample import resample_pieces


@pytest.fixture
def sound():
    return torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


@pytest.mark.parametrize("name", ["sound.wav", "sound.flac", "sound.mp3", "sound.ogg", "sound.m4a"])
def test_pieces_give_the_same_file_as_the_whole(sound, tmp_path, name):
    save_audio(tmp_path / f"whole-{name}", sound, 44100)
    save_audio(tmp_path / name, (piece.numpy() for piece in sound.split(7001, dim=1)), 44100)
    whole, rate = load_audio(tmp_path / f"whole-{name}")
    pieces, other_rate = load_audio(tmp_path / name)
    assert rate == other_rate and whole.shape == pieces.shape
    # Opus and AAC may split frames differently, which changes little.
    assert (whole - pieces).abs().max() < (1e-6 if name.endswith(("wav", "flac")) else 0.2)


def test_video(sound, tmp_path):
    frames = np.zeros((10, 32, 32, 3), np.uint8)
    save_video(tmp_path / "pieces.mp4", frames, iter(sound.split(9000, dim=1)), 44100, fps=10)
    save_video(tmp_path / "whole.mp4", frames, sound, 44100, fps=10)
    assert load_audio(tmp_path / "pieces.mp4")[0].shape == load_audio(tmp_path / "whole.mp4")[0].shape


def test_pieces_are_released_after_writing(tmp_path):
    made = []

    def pieces():
        for _ in range(50):
            piece = torch.zeros(1, 44100)
            made.append(weakref.ref(piece))
            yield piece
            del piece
            assert sum(reference() is not None for reference in made) <= 1

    save_audio(tmp_path / "long.ogg", pieces(), 44100)
    assert len(made) == 50


@pytest.mark.parametrize(("orig", "new"), [(44100, 48000), (48000, 44100), (44100, 8000), (8000, 44100)])
@pytest.mark.parametrize("size", [100_000, 30_011, 997])
def test_resampled_in_pieces(orig, new, size):
    """The pieces join to the resampled whole, and a tone keeps its frequency, level and phase."""
    wave = np.sin(2 * np.pi * 1000 / orig * np.arange(100_000)).astype(np.float32)
    sound = np.stack([wave, -wave / 2])
    pieces = list(resample_pieces([sound[:, i : i + size] for i in range(0, 100_000, size)], orig, new))
    joined = np.concatenate(pieces, axis=1)
    assert joined.shape == (2, math.ceil(100_000 * new / orig))
    np.testing.assert_allclose(joined, np.concatenate(list(resample_pieces([sound], orig, new)), axis=1), atol=1e-5)
    inner = slice(new // 10, -new // 10)
    ideal = np.sin(2 * np.pi * 1000 / new * np.arange(joined.shape[1]))[inner]
    assert np.abs(joined[0, inner] - ideal).max() < 1e-4 and np.abs(joined[1, inner] + ideal / 2).max() < 1e-4
    assert max(piece.shape[1] for piece in pieces) <= max(3 * new, size * new / orig + 1)


def fail_midway():
    yield np.zeros((2, 100), np.float32)
    raise RuntimeError("no more")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (lambda: iter([]), "`waveform` is empty"),
        (lambda: iter([np.zeros((2, 0), np.float32)]), "`waveform` is empty"),
        (lambda: iter([np.zeros((2, 9), np.float32), np.zeros((1, 9), np.float32)]), "pieces of 2 and of 1 channels"),
        (lambda: iter([np.zeros((2, 9), np.float32), np.full((2, 9), np.nan, np.float32)]), "NaN"),
        (fail_midway, "no more"),
    ],
)
def test_errors_midway_leave_the_old_file(tmp_path, pieces, message):
    (tmp_path / "sound.wav").write_bytes(b"old")
    with pytest.raises((ValueError, RuntimeError), match=message):
        save_audio(tmp_path / "sound.wav", pieces(), 44100)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("sound.wav", b"old")]


def test_one_warning_for_all_clipped_pieces(tmp_path, caplog):
    save_audio(
        tmp_path / "sound.wav", iter([np.full((1, 10), 2.0), np.full((1, 10), 0.5), np.full((1, 5), -3.0)]), 8000
    )
    (record,) = [record for record in caplog.records if "clipped" in record.getMessage()]
    assert record.getMessage() == "15 of 25 samples are outside -1..1 (peak 3.000) and were clipped."
