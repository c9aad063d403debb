import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from audiox_diffusers.atomic import check_target, filling, replace, replacing
from audiox_diffusers.media import save_audio

EXCEPTIONS = [RuntimeError, OSError, KeyboardInterrupt, SystemExit]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    """A folder with one file, beside another file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old a")
    (tmp_path / "file.txt").write_text("old")
    return contents(tmp_path)


def test_file_appears_when_complete(tmp_path, old):
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
        assert contents(tmp_path)["file.txt"] == "old" and temporary.suffix == ".txt"
    assert contents(tmp_path) == old | {"file.txt": "new"}


def test_folder_appears_when_complete(tmp_path, old):
    for name in ("folder", "other"):
        with replacing(tmp_path / name) as temporary:
            temporary.mkdir()
            (temporary / "b").write_text("new b")
        assert contents(tmp_path / name) == {"b": "new b"}
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder", "other"]


@pytest.mark.parametrize("error", EXCEPTIONS)
@pytest.mark.parametrize("name", ["file.txt", "folder", "missing"])
def test_exceptions_leave_everything_as_it_was(tmp_path, old, name, error):
    with pytest.raises(error), replacing(tmp_path / name) as temporary:
        if name == "folder":
            temporary.mkdir()
            temporary /= "b"
        temporary.write_text("half")
        raise error
    assert contents(tmp_path) == old


@pytest.mark.parametrize("failing", [1, 2])
def test_failed_move_of_a_folder_brings_the_old_one_back(tmp_path, old, monkeypatch, failing):
    calls, move = [], os.replace

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) == failing:
            raise KeyboardInterrupt
        move(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "b").write_text("new b")
    assert contents(tmp_path) == old and len(calls) >= failing


def test_file_and_folder_do_not_replace_each_other(tmp_path, old):
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "file.txt") as temporary:
        temporary.mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "folder") as temporary:
        temporary.touch()
    assert contents(tmp_path) == old


def test_folder_behind_a_link_is_not_touched(tmp_path, old):
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "new").write_text("new")
    replace(tmp_path / "new", tmp_path / "link")
    assert (tmp_path / "link").read_text() == "new" and contents(tmp_path / "folder") == {"a": "old a"}


def test_filling_keeps_other_entries(tmp_path, old):
    with filling(tmp_path / "folder") as temporary:
        (temporary / "b").write_text("new b")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "c").write_text("new c")
    assert contents(tmp_path / "folder") == {"a": "old a", "b": "new b", "sub/c": "new c"}
    with filling(tmp_path / "folder") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "a").write_text("new a")
    assert contents(tmp_path / "folder") == {"a": "new a", "b": "new b"}


@pytest.mark.parametrize("error", EXCEPTIONS)
@pytest.mark.parametrize("name", ["folder", "missing"])
def test_filling_leaves_everything_as_it_was(tmp_path, old, name, error):
    with pytest.raises(error), filling(tmp_path / name) as temporary:
        (temporary / "a").write_text("half")
        raise error
    assert contents(tmp_path) == old and sorted(os.listdir(tmp_path)) == ["file.txt", "folder"]


def test_filling_works_for_the_current_folder(tmp_path, old, monkeypatch):
    monkeypatch.chdir(tmp_path / "folder")
    with filling(Path(".")) as temporary:
        (temporary / "b").write_text("new b")
    assert contents(tmp_path / "folder") == {"a": "old a", "b": "new b"}


def test_errors_name_the_target(tmp_path):
    """Not the temporary path: Python's own errors, and FFmpeg's when the disk is full."""
    with pytest.raises(FileNotFoundError, match=rf"No such file or directory: '{tmp_path}/model/weights'"):
        with replacing(tmp_path / "model") as temporary:
            open(temporary / "weights")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path}/sound.wav'"):
            save_audio(tmp_path / "sound.wav", np.zeros(100_000, np.float32), 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not os.listdir(tmp_path)


def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/null")):
        with pytest.raises(FileExistsError, match=f"{path}: not a regular file"):
            check_target(path)
