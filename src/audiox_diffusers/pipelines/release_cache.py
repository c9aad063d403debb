"""Released models by name: download and convert one once, into the Hugging Face cache."""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from diffusers.utils import logging
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from safetensors import SafetensorError

from ..atomic import remove, replace
from ..embedded import EMBEDDED_FOLDERS
from ..loaders.original_checkpoint import DEFAULT_TEXT_ENCODER
from ..loaders.original_files import HUB_ERRORS, hub_error, layout_on_hub, list_files
from ..loaders.releases import LICENCE, Release, find_release, is_known
from .cache_errors import writing_to_cache
from .embedded_models import find_embedded
from .load_original import load_original_checkpoint
from .pipeline_audiox import AudioXPipeline

logger = logging.get_logger(__name__)

# What a conversion needs of the text encoder's repository.
_TEXT_ENCODER_FILES = {
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
}


def find_model(name: str | os.PathLike, **hub_kwargs: Any) -> str:
    """
    Return the folder of a model of this package, and every other name as it is.

    A folder of that name comes first. Then come `"audiox-tiny"` and `"audiox-tiny-turbo"`, which are part of the
    package, and the releases: `"audiox"`, `"audiox-maf"`, `"audiox-maf-mmdit"`, `"audiox-turbo"`, `"audiox-base"`, and
    their Hub ids.
    A release is downloaded and converted on first use. The converted copy stays in the Hugging Face cache, where
    `hf cache ls` lists it as `audiox_diffusers/NAME`; what was downloaded for it is removed. It is used from then on
    without asking the Hub.

    Args:
        name: A name, a Hub id or a folder.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, and `force_download` to convert again.

    Raises:
        FileNotFoundError: The release is not in the cache and cannot be downloaded.
        OSError: The cache is full or not writable.
    """
    name = os.fspath(name)
    if not is_known(name):
        return name
    if name in EMBEDDED_FOLDERS:
        return str(find_embedded(name, hub_kwargs.get("cache_dir")))
    return str(_Conversion(find_release(name), **hub_kwargs).run())


def write_model(pipe: AudioXPipeline, folder: Path) -> None:
    """Save a converted pipeline. `OSError` if it cannot be written, for example because the disk is full."""
    try:
        pipe.save_pretrained(folder, max_shard_size="2GB")
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None


@dataclass
class _Conversion:
    """
    A release in the cache.

    Its folder has the layout of a repository in the Hugging Face cache: `refs/REVISION` holds a commit, and
    `snapshots/COMMIT` the model.
    """

    release: Release
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __post_init__(self):
        self.cache = Path(self.cache_dir or constants.HF_HUB_CACHE)
        self.folder = self.cache / f"models--audiox_diffusers--{self.release.name}"
        self.hub_kwargs = {
            "token": self.token,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only or constants.is_offline_mode(),
        }

    def run(self) -> Path:
        """Return the folder of the converted model."""
        if (model := self.converted()) is not None and not self.force_download:
            return model
        with writing_to_cache(self.release.name, self.cache):
            lock = self.cache / ".locks" / self.folder.name / "convert.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                # Another process may have converted it in the meantime.
                if (model := self.converted()) is None or self.force_download:
                    model = self.convert()
                return model

    def converted(self) -> Path | None:
        """Return the folder of the converted model, if it exists."""
        ref = self.folder / "refs" / (self.revision or "main")
        commit = ref.read_text().strip() if ref.is_file() else self.revision
        if commit is None:
            return None
        model = self.folder / "snapshots" / commit
        return model if (model / "model_index.json").is_file() else None

    def convert(self) -> Path:
        repo_id, variant = self.release.repo_id, self.release.variant
        commit, sizes = list_files(repo_id, self.revision, **self.hub_kwargs)
        model = self.folder / "snapshots" / commit
        work = self.folder / "incomplete"
        if self.force_download or not (model / "model_index.json").is_file():
            files = layout_on_hub(repo_id, sizes, variant).files()
            encoder_commit, encoder_sizes = list_files(DEFAULT_TEXT_ENCODER, **self.hub_kwargs)
            sources = [
                _Source(repo_id, commit, {name: sizes[name] for name in files}),
                _Source(
                    DEFAULT_TEXT_ENCODER,
                    encoder_commit,
                    {name: size for name, size in encoder_sizes.items() if name in _TEXT_ENCODER_FILES},
                ),
            ]
            logger.warning(
                f"{self.release.name}: downloading and converting https://huggingface.co/{repo_id}, once. Licence of"
                f" the weights: {LICENCE}, not for commercial use."
            )
            # An interrupted download resumes, an interrupted conversion starts again.
            remove(work / "model")
            self.check_disk(work, sources)
            source, text_encoder = [self.download(each, work) for each in sources]
            pipe = load_original_checkpoint(source, variant=variant, text_encoder=text_encoder)
            write_model(pipe, work / "model")
            model.parent.mkdir(parents=True, exist_ok=True)
            replace(work / "model", model)
        # The model counts as converted once the revision has a file, so nothing that is left over goes unnoticed.
        remove(work)
        ref = self.folder / "refs" / (self.revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "ref.incomplete"
        temporary.write_text(commit)
        os.replace(temporary, ref)
        return model

    def cached(self, source: "_Source") -> Path | None:
        """Return the folder of a source in the Hugging Face cache, if it has all files."""
        try:
            folder = snapshot_download(
                source.repo_id, revision=source.commit, cache_dir=self.cache_dir, local_files_only=True
            )
        except (LocalEntryNotFoundError, OSError):
            return None
        return Path(folder) if all((Path(folder) / name).is_file() for name in source.sizes) else None

    def download(self, source: "_Source", work: Path) -> Path:
        """Return a folder with the files: that of the Hugging Face cache if it has them, or a temporary one."""
        if (folder := self.cached(source)) is not None:
            return folder
        folder = work / source.repo_id.replace("/", "--") / source.commit
        try:
            if self.hub_kwargs["local_files_only"]:
                raise LocalEntryNotFoundError("local_files_only is set")
            for name in source.sizes:
                if not (folder / name).is_file():
                    self.fetch(hf_hub_url(source.repo_id, name, revision=source.commit), folder / name)
        except HUB_ERRORS as error:
            raise hub_error(source.repo_id, error) from None
        except OSError as error:
            raise hub_error(source.repo_id, error) if error.errno is None else error from None
        return folder

    def fetch(self, url: str, file: Path) -> None:
        """Download a file, or the rest of it. The downloads of huggingface_hub start again if they are killed."""
        metadata = get_hf_file_metadata(url, token=self.token)
        headers = build_hf_headers(token=self.token)
        if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)
        part = file.with_name(f"{file.name}.{metadata.etag}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as content:
            http_get(
                metadata.location,
                content,
                resume_size=content.tell(),
                headers=headers,
                expected_size=metadata.size,
                displayed_filename=file.name,
            )
        os.replace(part, file)

    def check_disk(self, work: Path, sources: list["_Source"]) -> None:
        """Raise `OSError` if the disk has no room for the downloads and the converted model."""
        done = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
        sizes = [sum(source.sizes.values()) for source in sources]
        needed = sum(sizes) - done + sum(size for size, each in zip(sizes, sources) if self.cached(each) is None)
        existing = next(path for path in (work, *work.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


class _Source(NamedTuple):
    """Files that a conversion reads from a repository."""

    repo_id: str
    commit: str
    sizes: dict[str, int]  # in bytes, by file name
