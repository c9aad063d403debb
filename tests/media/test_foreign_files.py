"""Paths and files from strangers: no other file is opened, no program started, nothing reaches the network."""

import re
import socket
from pathlib import Path

import pytest
from media_attacks import FILES, NAMES, write_attacks
from media_samples import PICTURES, SOUNDS, VIDEOS, write_sample

from audiox_diffusers.media import (
    MediaBytes,
    MediaError,
    load_audio,
    load_image,
    load_video,
    media_duration,
    save_video,
)
from audiox_diffusers.media.containers import DEMUXERS
from audiox_diffusers.media.image import FORMATS

READERS = [load_audio, load_video, media_duration, lambda path: save_video("copy.mkv", path)]
DOCS = Path(__file__).parents[2] / "docs" / "media.md"


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    """Everything that could lead elsewhere, the secret file, and a server that must not be reached."""
    folder = tmp_path_factory.mktemp("attacks")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield folder, *write_attacks(folder, server.getsockname()[1])
        with pytest.raises(BlockingIOError):
            server.accept()
        assert not (folder / "started").exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_paths(attacks, name, monkeypatch):
    folder, _, names, _ = attacks
    monkeypatch.chdir(folder)
    for read in (*READERS, load_image):
        with pytest.raises(FileNotFoundError) as caught:
            read(names[name])
        assert str(caught.value) == f"{names[name]}: no such file"


@pytest.mark.parametrize("name", FILES)
def test_files_lead_nowhere(attacks, name, monkeypatch):
    folder, _, _, files = attacks
    monkeypatch.chdir(folder)
    for read in READERS:
        for source in (files[name], name, MediaBytes(files[name].read_bytes(), name)):
            if isinstance(source, MediaBytes) and read is READERS[-1]:
                continue
            with pytest.raises(MediaError, match=r": (not a sound or video file|a playlist)"):
                read(source)
    with pytest.raises(MediaError, match="not a picture of a supported format"):
        load_image(files[name])


def test_external_data_of_a_movie_is_not_followed(attacks):
    """The tracks point to the secret file; what is read is the movie's own data, which was left in."""
    _, secret, _, files = attacks
    secret_sound = load_audio(secret)[0]
    secret.write_bytes(b"")
    assert load_audio(files["reference.mov"])[0].shape == secret_sound.shape
    assert load_video(files["reference.mov"]).shape[0] == 3


def test_names_with_colons_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2026-11-27T12:30:05.mp4", "http:127.0.0.1:9.mp4", "file:clip.mp4", "concat:a|b.mp4", "data:,x.mp4"):
        write_sample(tmp_path / "sample.mp4").rename(name)
        assert len(load_video(name)) == 3 and media_duration(name) == 0.5
        save_video(f"new {name}", name, *load_audio(name))
        assert load_audio(f"new {name}")[0].shape[0] == 2


@pytest.mark.parametrize("name", ["frame%d.png", "%03d.jpg", "*.webp", "[ab].gif"])
def test_patterns_are_names(tmp_path, name):
    """FFmpeg would read a numbered series."""
    path = write_sample(tmp_path / f"1{Path(name).suffix}")
    with pytest.raises(FileNotFoundError):
        load_video(tmp_path / name)
    path.rename(tmp_path / name)
    assert len(load_video(tmp_path / name)) in (1, 3)


@pytest.mark.parametrize("suffix", [*SOUNDS, *VIDEOS, *PICTURES])
def test_supported_formats_open_under_any_name(tmp_path, suffix, caplog):
    path = write_sample(tmp_path / f"sample{suffix}")
    readers = [load_audio] if suffix in SOUNDS else [load_video] + [load_image] * (suffix in PICTURES)
    if suffix in VIDEOS and VIDEOS[suffix][2]:
        readers.append(load_audio)
    for read in readers:
        read(path)
        # Raw streams are recognised with the help of their extension.
        if suffix not in (".m4v", ".voc"):
            read(MediaBytes(path.read_bytes(), "upload"))
    assert not caplog.records


def test_page_tells_what_opens_and_what_is_refused(attacks):
    folder, _, names, files = attacks
    text = DOCS.read_text()
    refused = text[text.index("## What is refused") : text.index("## Limits")]
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", refused, re.MULTILINE))
    for name in NAMES:
        key = name.replace("|", "\\|")
        assert rows.pop(key) == "`FileNotFoundError`: no such file"
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_video(names[name])
    for name in FILES:
        with pytest.raises(MediaError) as caught:
            load_video(files[name])
        assert rows.pop(name) == f"`MediaError`: {str(caught.value).removeprefix(f'{files[name]}: ')}"
    assert not rows
    formats = text[text.index("## Formats") : text.index("## What is refused")]
    listed = re.findall(r"`(.+?)`", formats)
    assert set(listed) == {*DEMUXERS, *FORMATS}
