"""Atomic writing: a file or folder appears only when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# Temporary paths in use.
_unfinished: set[Path] = set()


def check_target(path: Path) -> None:
    """
    Check that a file can be written to `path`.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: The parent folder is missing, not a folder or read-only.
        IsADirectoryError, FileExistsError: `path` is a folder, or a device, pipe or socket.
    """
    folder = path.parent
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: folder is not writable")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, cannot be replaced by a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: not a regular file, cannot be replaced")


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` for a temporary file or folder, which is removed at the end."""
    temporary = _hidden(path)
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        _discard(temporary)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Yield a temporary path beside `path`, and move the file or folder written there to `path` at the end.

    On any exception, `KeyboardInterrupt` and `SystemExit` included, the temporary is removed and `path` keeps what it
    had. An `OSError` about the temporary path names `path` instead.

    Args:
        path: File or folder to write. Its parent must exist. A file replaces a file and keeps its permissions, a folder
            replaces a folder. Of a link to a file, the file is replaced.
    """
    target = path.resolve() if path.is_symlink() and path.is_file() else path
    with scratch(target) as temporary:
        try:
            yield temporary
            if target.is_file() and temporary.is_file():
                shutil.copymode(target, temporary)
            replace(temporary, target)
        except OSError as error:
            if str(temporary) not in str(error.filename):
                raise
            name = str(error.filename).replace(str(temporary), str(path))
            raise OSError(error.errno, error.strerror, name) from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """
    Yield a temporary folder inside `folder`, and move everything written there into `folder` at the end.

    For a folder that must keep its other contents, or that cannot be replaced itself: a mount point, the current
    directory. `folder` is created if missing. On any exception its contents stay as they were.

    Args:
        folder: Folder to write into. Entries of the same name are replaced.
    """
    existed = folder.exists()
    try:
        with scratch(folder / "new") as temporary:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in sorted(temporary.iterdir()):
                replace(entry, folder / entry.name)
    finally:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def replace(source: Path, target: Path) -> None:
    """Move a file or folder to `target`, replacing what is there. If that fails, `target` keeps what it had."""
    if not (source.is_dir() and target.is_dir()) or target.is_symlink():
        os.replace(source, target)
        return
    # A folder with contents cannot be overwritten, so it steps aside first.
    old = _hidden(target)
    try:
        os.replace(target, old)
        os.replace(source, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    finally:
        if target.exists():
            _unfinished.add(old)
            _discard(old)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished() -> None:
    """Remove temporary files and folders whose own removal was interrupted."""
    for temporary in list(_unfinished):
        _discard(temporary)


def _discard(temporary: Path) -> None:
    remove(temporary)
    _unfinished.discard(temporary)


def _hidden(path: Path) -> Path:
    """A name beside `path` that is not in use. The suffix stays, because some writers choose the format by it."""
    return path.with_name(f".{uuid4().hex}{path.suffix}")
