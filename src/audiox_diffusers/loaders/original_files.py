"""Find and read the files of a released AudioX checkpoint."""

import errno
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..messages import first_line
from .checkpoint_mapping import some
from .releases import EXPECTED, RELEASES, VARIANTS, Layout, find_layout, find_release, layout_of_file, published_config

HUB_ERRORS = (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError)
# Keys under which training code stores a state dict.
WRAPPERS = ("state_dict", "model", "student", "student_state_dict")


@dataclass
class OriginalFiles:
    """
    A released checkpoint on this machine.

    Args:
        checkpoint (`Path`): The checkpoint file.
        config (`dict`): Its released config.
        published (`bool`): Whether `config` is the published one of a release, so that sizes may differ.
        teacher (`bool`): Whether it is the teacher of AudioX-Turbo.
        vae, synchformer (`Path`, *optional*): Files of their own for the VAE and for Synchformer.
    """

    checkpoint: Path
    config: dict[str, Any]
    published: bool
    teacher: bool
    vae: Path | None
    synchformer: Path | None


def find_files(
    checkpoint: str | Path,
    config: str | Path | Mapping | None = None,
    variant: str | None = None,
    **hub_kwargs: Any,
) -> OriginalFiles:
    """
    Find the files of a released checkpoint, and download them if it is on the Hub.

    Args:
        checkpoint: A checkpoint file, a folder with the files of a release, the name of a release, or a Hub id.
        config: A config, its file, or the name of a release. Defaults to the config that belongs to the checkpoint.
        variant: `"student"` or `"teacher"`, for AudioX-Turbo.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: There is no such checkpoint, or it has no config.
        ValueError: `variant` is unknown, or `config` is no config.
    """
    if variant is None and isinstance(config, str) and config in RELEASES and not Path(config).is_file():
        variant = RELEASES[config].variant
    folder, layout = locate(checkpoint, variant, **hub_kwargs)

    def file(name: str | None) -> Path | None:
        return None if name is None else folder / name

    if config is None:
        config = file(layout.config)
        # The config.json of AudioX-Turbo is not the config of a model.
        if layout.release is not None and (config is None or "model_type" not in read_config(config)):
            config = layout.release
    if config is None:
        raise FileNotFoundError(
            f"`config`: no config.json beside {folder / layout.checkpoint}. Give a file, or the name of a release:"
            f" {', '.join(RELEASES)}"
        )
    return OriginalFiles(
        checkpoint=folder / layout.checkpoint,
        config=read_config(config),
        published=isinstance(config, str) and not Path(config).is_file(),
        teacher=layout.teacher,
        vae=file(layout.vae),
        synchformer=file(layout.synchformer),
    )


def locate(checkpoint: str | Path, variant: str | None = None, **hub_kwargs: Any) -> tuple[Path, Layout]:
    """Return the folder of a released checkpoint and its [`Layout`] there, see [`find_files`]."""
    if variant not in (None, *VARIANTS):
        raise ValueError(f"`variant` must be 'student' or 'teacher', got {variant!r}.")
    path = Path(checkpoint)
    if path.is_file():
        return layout_of_file(path, variant)
    if not path.is_dir():
        release = find_release(str(checkpoint))
        repo_id = str(checkpoint) if release is None else release.repo_id
        return download(repo_id, variant or (release and release.variant), **hub_kwargs)
    layout = find_layout(lambda name: (path / name).is_file(), variant)
    if layout is None:
        raise FileNotFoundError(
            f"{path}: no released checkpoint in this folder. Expected {EXPECTED}; found"
            f" {some(entry.name for entry in path.iterdir()) or 'nothing'}"
        )
    return path, layout


def download(repo_id: str, variant: str | None = None, **hub_kwargs: Any) -> tuple[Path, Layout]:
    """
    Download the files of a release to the Hugging Face cache.

    Args:
        repo_id: Hub id.
        variant: See [`find_files`].
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: There is no such repository, it holds no release, or it cannot be downloaded.
    """
    commit, files = list_files(repo_id, **hub_kwargs)
    layout = layout_on_hub(repo_id, files, variant)
    hub_kwargs["revision"] = commit
    try:
        return Path(snapshot_download(repo_id, allow_patterns=layout.files(), **hub_kwargs)), layout
    except (*HUB_ERRORS, OSError) as error:
        raise hub_error(repo_id, error) from None


def list_files(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[str, dict[str, int]]:
    """
    List a Hub repository, or what the Hugging Face cache has of it if the Hub cannot be asked.

    Returns:
        The commit, and the size of each file in bytes.

    Raises:
        FileNotFoundError: There is no such repository.
    """
    try:
        try:
            if local_files_only:
                raise LocalEntryNotFoundError("local_files_only is set")
            info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
            return info.sha, {file.rfilename: file.size or 0 for file in info.siblings}
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
            try:
                folder = snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True)
            except LocalEntryNotFoundError:
                raise error from None
    except (*HUB_ERRORS, OSError) as error:
        raise hub_error(repo_id, error) from None
    files = [file for file in Path(folder).rglob("*") if file.is_file()]
    return Path(folder).name, {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def layout_on_hub(repo_id: str, files: Mapping[str, int], variant: str | None) -> Layout:
    """Return the [`Layout`] of a Hub repository. `FileNotFoundError` if it holds no release."""
    layout = find_layout(files.__contains__, variant)
    if layout is None:
        raise FileNotFoundError(
            f"{repo_id}: no released checkpoint in this Hub repository. Expected {EXPECTED}; found"
            f" {some(files) or 'nothing'}"
        )
    return layout


def hub_error(name: str, error: Exception) -> FileNotFoundError:
    """Return an error in one line that says why a name was not found, or not downloaded."""
    if isinstance(error, RevisionNotFoundError):
        why = "no such revision on the Hub"
    elif isinstance(error, GatedRepoError):
        why = "the Hub repository is gated; accept its conditions there, and log in with `hf auth login`"
    elif isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        why = "no such file, folder, release or Hub repository"
    elif isinstance(error, OfflineModeIsEnabled) or constants.is_offline_mode():
        why = "no such file or folder, not in the cache, and HF_HUB_OFFLINE forbids downloads"
    elif isinstance(error, LocalEntryNotFoundError) and "local_files_only" in str(error):
        why = "no such file or folder, not in the cache, and `local_files_only` forbids downloads"
    elif isinstance(error, (LocalEntryNotFoundError, httpx.TransportError)):
        why = f"no such file or folder, not in the cache, and the Hub cannot be reached ({first_line(error)})"
    else:
        why = f"the download failed ({first_line(error)})"
    return FileNotFoundError(f"{name}: {why}")


def read_config(config: str | Path | Mapping) -> dict[str, Any]:
    """
    Read a released config: a dict, a file, or the name of a release.

    Raises:
        FileNotFoundError: There is no such file or release.
        ValueError: The file is not JSON, or not a config.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if not Path(config).is_file():
        if str(config) in RELEASES:
            return published_config(str(config))
        raise FileNotFoundError(f"`config`: {config} is neither a file nor one of {', '.join(RELEASES)}")
    try:
        value = json.loads(Path(config).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`config`: {config} is not JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"`config`: {config} is not an AudioX config")
    return value


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a `.ckpt` or `.pth` file (a pickle, read with `weights_only=True`) or of a `.safetensors` file.

    The tensors are memory-mapped. They may be stored as they are, or under a key of `WRAPPERS`.

    Raises:
        ValueError: The file is damaged, contains code, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
        checkpoint = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"{path}: not a checkpoint, or damaged") from None
        raise ValueError(f"{path}: refused, because the pickle contains code ({found[1]})") from None
    except (RuntimeError, EOFError, OSError, SafetensorError, ValueError, LookupError, struct.error) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path}: not a checkpoint, or damaged ({first_line(error)})") from None
    if isinstance(checkpoint, dict):
        for value in (*(checkpoint.get(key) for key in WRAPPERS), checkpoint):
            if value and isinstance(value, dict) and all(isinstance(item, torch.Tensor) for item in value.values()):
                return value
    found = some(map(str, checkpoint)) if isinstance(checkpoint, dict) else f"a {type(checkpoint).__name__}"
    raise ValueError(
        f"{path}: not an AudioX checkpoint. Expected a state dict, alone or under {', '.join(WRAPPERS)}; found"
        f" {found or 'nothing'}"
    )
