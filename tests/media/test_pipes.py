"""Pipes as inputs."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import tone
from media_samples import write_sample

from audiox_diffusers.media import MediaError, load_audio, load_image, load_video, media_duration, save_video


def feed(path, content):
    """Write into a named pipe as soon as somebody reads it."""

    def write():
        with contextlib.suppress(BrokenPipeError):
            Path(path).write_bytes(content)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["clip.mp4", "sound.flac", "sound.wav", "picture.webp", "clip.mkv"])
def test_named_pipe_is_read_once_and_used_often(tmp_path, name):
    source = write_sample(tmp_path / name)
    os.mkfifo(tmp_path / f"pipe-{name}")
    writer = feed(tmp_path / f"pipe-{name}", source.read_bytes())
    pipe = tmp_path / f"pipe-{name}"
    assert media_duration(pipe) == media_duration(source)
    writer.join(5)
    if name.startswith("sound"):
        for _ in range(2):
            assert torch.equal(load_audio(pipe)[0], load_audio(source)[0])
    else:
        assert torch.equal(load_video(pipe, start=0.2), load_video(source, start=0.2))
        save_video(tmp_path / "copy.mkv", pipe, tone(0.5), 16000)
        if name == "picture.webp":
            assert torch.equal(load_image(pipe), load_image(source))


def test_open_descriptor_as_the_shell_gives_it(tmp_path):
    source = write_sample(tmp_path / "sound.mp3")
    reading, writing = os.pipe()
    feed(f"/dev/fd/{writing}", source.read_bytes()).join(5)
    os.close(writing)
    try:
        for _ in range(2):
            assert torch.equal(load_audio(f"/dev/fd/{reading}")[0], load_audio(source)[0])
    finally:
        os.close(reading)


def in_a_process(code, folder, **options):
    command = [sys.executable, "-c", f"from audiox_diffusers.media import load_audio, load_video\n{code}"]
    return subprocess.run(command, capture_output=True, cwd=folder, timeout=60, **options)


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_input(tmp_path, kind):
    source = write_sample(tmp_path / "clip.mp4")
    code = "print(len(load_video('-')), load_audio('-')[0].shape[1])"
    with open(source, "rb") as file:
        given = {"stdin": file} if kind == "file" else {"input": source.read_bytes()}
        done = in_a_process(code, tmp_path, **given)
    assert done.stdout.split() == [b"3", b"24576"], done.stderr
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_file_with_the_name_of_standard_input(tmp_path):
    write_sample(tmp_path / "sound.wav").rename(tmp_path / "-")
    done = in_a_process("print(load_audio('-')[0].shape[1])", tmp_path, stdin=subprocess.DEVNULL)
    assert done.stdout.split() == [b"24000"], done.stderr


def test_copy_of_a_pipe_leaves_nothing(tmp_path):
    content = write_sample(tmp_path / "sound.wav").read_bytes()
    (tmp_path / "temporary").mkdir()
    code = "import os, signal; load_audio('-'); os.kill(os.getpid(), signal.SIGKILL)"
    done = in_a_process(code, tmp_path, input=content, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")})
    assert done.returncode == -9, done.stderr
    assert not os.listdir(tmp_path / "temporary")


def test_pipes_that_hold_nothing_of_use(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "empty")
    feed(tmp_path / "empty", b"").join(0)
    with pytest.raises(MediaError, match="empty: the file is empty"):
        load_audio(tmp_path / "empty")
    os.mkfifo(tmp_path / "text")
    feed(tmp_path / "text", b"words " * 1000)
    with pytest.raises(MediaError, match="text: not a sound or video file"):
        load_audio(tmp_path / "text")
    monkeypatch.setattr("audiox_diffusers.media.files.MAX_PIPE_SIZE", 10_000)
    os.mkfifo(tmp_path / "endless")
    feed(tmp_path / "endless", bytes(2_000_000))
    with pytest.raises(MediaError, match="holds more than 10000 bytes"):
        load_audio(tmp_path / "endless")


@pytest.mark.parametrize("read", [load_audio, load_video, load_image, media_duration])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_refused(read, device):
    with pytest.raises(MediaError, match="neither a file nor a pipe"):
        read(device)
