"""Reading leaves no thread, no file descriptor and no temporary file, whole files and damaged ones."""

import gc
import os

import numpy as np
import pytest
from fuzz_media import FORMATS, fuzz
from helpers import tone
from media_samples import write_sample

from audiox_diffusers.media import MediaError, load_audio, load_image, load_video, media_duration, save_video


def open_things():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


READS = {
    "video": (".mp4", lambda path: load_video(path, duration=0.3, size=(8, 8))),
    "whole video": (".mkv", lambda path: load_video(path, fps=25, duration=None)),
    "sound of a video": (".mov", lambda path: load_audio(path, 16000, 1, duration=0.1)),
    "odd rate": (".wav", lambda path: load_audio(path, 16001)),
    "animation": (".webp", load_video),
    "picture": (".jpg", load_image),
    "duration": (".h264", media_duration),
    "copy": (".mp4", lambda path: save_video(path.with_name("copy.mp4"), path, tone(0.5), 16000)),
    "frames": (".mp4", lambda path: save_video(path.with_name("new.mp4"), np.zeros((9, 48, 64, 3), np.uint8), fps=9)),
}


@pytest.mark.parametrize("name", READS)
def test_without_the_garbage_collector(tmp_path, name):
    suffix, read = READS[name]
    path = write_sample(tmp_path / f"sample{suffix}")
    read(path)
    gc.collect()
    gc.disable()
    try:
        before = open_things()
        for _ in range(10):
            read(path)
        assert open_things() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("name", READS)
def test_after_an_error(tmp_path, name):
    suffix, read = READS[name]
    path = write_sample(tmp_path / f"sample{suffix}")
    read(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    gc.collect()
    gc.disable()
    try:
        before = open_things()
        for _ in range(10):
            try:
                read(path)
            except MediaError:
                pass
        assert open_things() == before
        assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".")]
    finally:
        gc.enable()


@pytest.mark.slow
def test_some_damaged_files_of_every_format():
    """`python tests/helpers/fuzz_media.py` reads all of them."""
    report = fuzz(FORMATS, every=23)
    assert not report.faults and report.slowest < 10
    assert sum(report.outcomes.values()) > 400 and min(report.outcomes["read"], report.outcomes["MediaError"]) > 100
