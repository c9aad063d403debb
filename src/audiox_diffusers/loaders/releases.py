"""The released AudioX models: their names, where they are published, and the files they consist of."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..embedded import EMBEDDED_FOLDERS

LICENCE = "CC-BY-NC-4.0"
VARIANTS = ("student", "teacher")


@dataclass(frozen=True)
class Release:
    """
    A released model.

    Args:
        name (`str`): Its name in this package.
        repo_id (`str`): Where it is published on the Hub.
        config (`str`): Name of its published config.
        variant (`str`): `"teacher"` for the model that AudioX-Turbo was distilled from.
    """

    name: str
    repo_id: str
    config: str
    variant: str | None = None


RELEASES = {
    release.name: release
    for release in (
        Release("audiox", "HKUSTAudio/AudioX", "audiox"),
        Release("audiox-maf", "HKUSTAudio/AudioX-MAF", "audiox-maf"),
        Release("audiox-maf-mmdit", "HKUSTAudio/AudioX-MAF-MMDiT", "audiox-maf-mmdit"),
        Release("audiox-turbo", "HKUSTAudio/AudioX-Turbo", "audiox-turbo"),
        Release("audiox-base", "HKUSTAudio/AudioX-Turbo", "audiox-turbo", variant="teacher"),
    )
}


def find_release(name: str) -> Release | None:
    """Return the release of a name such as `audiox`, or of a Hub id such as `HKUSTAudio/AudioX`."""
    if name in RELEASES:
        return RELEASES[name]
    return next((release for release in RELEASES.values() if release.repo_id == name), None)


def is_known(name: str | os.PathLike) -> bool:
    """Whether a name is that of a release or of a model of the package, and not of a folder. A `Path` is not a name."""
    known = isinstance(name, str) and (name in EMBEDDED_FOLDERS or find_release(name) is not None)
    return known and not os.path.isdir(name)


def published_config(name: str) -> dict[str, Any]:
    """Return the config with which a release was published."""
    path = Path(__file__).parent / "configs" / f"{RELEASES[name].config}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Layout:
    """
    The files of a release, relative to its folder.

    Args:
        checkpoint (`str`): The checkpoint.
        config (`str`, *optional*): Its config.
        release (`str`, *optional*): Name of the release whose published config to use if `config` is not one.
        teacher (`bool`): Whether the checkpoint is the teacher of AudioX-Turbo.
        vae, synchformer (`str`, *optional*): Files of their own for the VAE and for Synchformer.
    """

    checkpoint: str
    config: str | None = None
    release: str | None = None
    teacher: bool = False
    vae: str | None = None
    synchformer: str | None = None

    def files(self) -> list[str]:
        return [name for name in (self.checkpoint, self.config, self.vae, self.synchformer) if name is not None]


_CHECKPOINTS = ("model.safetensors", "model.ckpt")
# AudioX-Turbo keeps its files in folders, below `checkpoints` where its download script leaves them.
_ROOTS = ("", "checkpoints/")
TURBO = {"student": "audiox_turbo/audiox_turbo", "teacher": "pretrained_ckpt/pretrained_ckpt"}
_TURBO_RELEASES = {"student": "audiox-turbo", "teacher": "audiox-base"}
EXPECTED = (
    "model.safetensors or model.ckpt with config.json, or audiox_turbo/audiox_turbo.ckpt or"
    " pretrained_ckpt/pretrained_ckpt.ckpt"
)


def find_layout(exists: Callable[[str], bool], variant: str | None = None) -> Layout | None:
    """
    Find the files of a release in a folder or repository.

    Args:
        exists: Whether there is a file of a name, relative to the folder.
        variant: `"teacher"` for the teacher of AudioX-Turbo. By default the student, if both are there.

    Returns:
        The [`Layout`], or `None` if there is no checkpoint.
    """
    checkpoint = _first(exists, *_CHECKPOINTS)
    if checkpoint is not None:
        config = _first(exists, "config.json")
        return Layout(checkpoint, config, teacher=variant == "teacher", **_beside(exists))
    for root in _ROOTS:
        for kind in VARIANTS if variant is None else (variant,):
            checkpoint = _first(exists, *(f"{root}{TURBO[kind]}{suffix}" for suffix in (".safetensors", ".ckpt")))
            if checkpoint is not None:
                release, teacher = _TURBO_RELEASES[kind], kind == "teacher"
                config = _first(exists, f"{root}config.json")
                return Layout(checkpoint, config, release, teacher, **_beside(exists, root))
    return None


def layout_of_file(path: Path, variant: str | None = None) -> tuple[Path, Layout]:
    """Return the folder of a release that a checkpoint file belongs to, and its [`Layout`] there."""
    kind = next((kind for kind, name in TURBO.items() if path.stem == name.split("/")[1]), None)
    in_folders = kind is not None and path.parent.name == path.stem
    folder = path.parent.parent if in_folders else path.parent

    def exists(name: str) -> bool:
        return (folder / name).is_file()

    layout = Layout(
        str(path.relative_to(folder)),
        config=_first(exists, "config.json"),
        release=None if kind is None else _TURBO_RELEASES[kind],
        teacher="teacher" in (variant, kind if variant is None else None),
        **_beside(exists),
    )
    return folder, layout


def _first(exists: Callable[[str], bool], *names: str) -> str | None:
    return next(filter(exists, names), None)


def _beside(exists: Callable[[str], bool], root: str = "") -> dict[str, str | None]:
    """Find the files of the VAE and Synchformer, which may be in folders of their own."""
    names = {
        "vae": ("vae.safetensors", "vae.ckpt"),
        "synchformer": ("synchformer_state_dict.safetensors", "synchformer_state_dict.pth"),
    }
    folders = {"vae": ("", "pretransform/"), "synchformer": ("", "synchformer/")}
    return {
        kind: _first(exists, *(root + folder + name for folder in folders[kind] for name in names[kind]))
        for kind in names
    }
