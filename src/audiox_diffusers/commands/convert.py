"""`audiox convert`."""

import glob
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from huggingface_hub import HfApi

from ..atomic import remove, replace
from ..pipelines import load_original_checkpoint
from ..pipelines.release_cache import write_model
from .model_card import count_parameters, model_card
from .quiet import quiet_libraries
from .terminal import say


def run(args: Namespace) -> int:
    """Run `audiox convert`, and return the exit status."""
    target = Path(args.target)
    with quiet_libraries():
        pipe = load_original_checkpoint(
            args.source,
            config=args.config,
            text_encoder=args.text_encoder,
            tokenizer=args.tokenizer,
            image_encoder_config=args.image_encoder_config,
            vae=args.vae,
            synchformer=args.synchformer,
            dtype=None if args.dtype is None else getattr(torch, args.dtype),
            variant=args.variant,
        )
        if pipe.tokenizer is None:
            raise ValueError("no tokenizer found: give one with --tokenizer")
        card = model_card(pipe, args.source, args.text_encoder, args.push_to_hub or target.absolute().name)
        with new_folder(target) as folder:
            write_model(pipe, folder)
            (folder / "README.md").write_text(card, encoding="utf-8")

    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    parameters = sum(count_parameters(pipe).values())
    say(f"wrote {target}: {parameters / 1e6:,.1f} million parameters, {size / 1e6:,.1f} MB")
    if args.push_to_hub is not None:
        api = HfApi()
        repo = api.create_repo(args.push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=target)
        say(f"uploaded {target} to {repo}")
    return 0


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """
    Yield a hidden folder beside `target`, and move it there at the end, so that `target` never holds half a model.

    It is removed on an exception. If the process is killed it stays, and the next call for the same target removes it.
    """
    target = target.absolute()
    prefix = f".{target.name}.incomplete-"
    for old in target.parent.glob(f"{glob.escape(prefix)}*"):
        process = old.name.removeprefix(prefix)
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            remove(old)
    temporary = target.with_name(f"{prefix}{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        replace(temporary, target)
    except OSError as error:
        if str(temporary) not in str(error.filename):
            raise
        name = str(error.filename).replace(str(temporary), str(target))
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        remove(temporary)
