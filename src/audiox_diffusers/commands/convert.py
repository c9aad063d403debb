"""`audiox convert`."""

import shutil
from argparse import Namespace
from pathlib import Path
from uuid import uuid4

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ..atomic import check_target
from ..pipelines import AudioXPipeline, load_original_checkpoint
from .model_card import count_parameters, model_card
from .quiet import quiet_libraries


def run(args: Namespace) -> int:
    """`audiox convert`; the exit status."""
    target = Path(args.target)
    _check_folder(target)
    if args.push_to_hub is not None:
        validate_repo_id(args.push_to_hub)
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
        )
        if pipe.tokenizer is None:
            raise ValueError("no tokenizer found: give one with --tokenizer")
        name = args.push_to_hub or target.absolute().name
        _write(pipe, target, model_card(pipe, args.source, args.text_encoder, name))

    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    parameters = sum(count_parameters(pipe).values())
    print(f"wrote {target}: {parameters / 1e6:,.1f} million parameters, {size / 1e6:,.1f} MB")
    if args.push_to_hub is not None:
        api = HfApi()
        repo = api.create_repo(args.push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=target)
        print(f"uploaded {target} to {repo}")
    return 0


def _check_folder(target: Path) -> None:
    """Raise a built-in `OSError` unless a new folder can be put at `target`."""
    if target.is_dir():
        if any(target.iterdir()):
            raise FileExistsError(f"{target}: not an empty folder")
    elif target.exists():
        raise FileExistsError(f"{target}: exists, and is no folder")
    else:
        check_target(target)


def _write(pipe: AudioXPipeline, target: Path, card: str) -> None:
    """Save beside `target` and move there at the end, so that `target` is complete or not there."""
    temporary = target.absolute().with_name(f".{uuid4().hex}")
    try:
        pipe.save_pretrained(temporary, max_shard_size="2GB")
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
