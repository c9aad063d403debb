"""`audiox export`."""

import os
from argparse import Namespace
from pathlib import Path

import torch
from safetensors import safe_open

from ..atomic import filling
from ..generation.loading import check_model
from ..loaders.original_export import SUFFIXES, export_original, file_layout, published_layout, release_of
from ..pipelines import AudioXPipeline, load_original_checkpoint
from .convert import new_folder
from .quiet import quiet_libraries
from .terminal import say


def run(args: Namespace) -> int:
    """Run `audiox export`, and return the exit status."""
    target = Path(args.target)
    check_model(args.model)
    with quiet_libraries():
        pipe = _load(args.model)
        if args.fuse_lora is not None:
            pipe.load_lora_weights(args.fuse_lora)
            pipe.fuse_lora()
            pipe.unload_lora_weights()
        synchformer = pipe.sync_encoder is not None
        if target.suffix in SUFFIXES:
            layout, writing = file_layout(target.name, synchformer), filling(target.parent)
            if existing := [name for name in layout.files() if (target.parent / name).exists()]:
                raise FileExistsError(f"{target.parent / existing[0]}: exists; name a file in a new folder")
        else:
            layout, writing = published_layout(release_of(pipe), synchformer), new_folder(target)
        with writing as folder:
            folder.mkdir(exist_ok=True)
            export_original(pipe, folder, layout, args.like)
    root = target.parent if target.suffix in SUFFIXES else target
    size = sum((root / name).stat().st_size for name in layout.files())
    say(f"wrote {', '.join(str(root / name) for name in layout.files())}: {size / 1e6:,.1f} MB")
    return 0


def _load(model: str) -> AudioXPipeline:
    """Load a pipeline without its text encoder, which no checkpoint contains, in the dtypes that are stored."""
    folder = model if os.path.isdir(model) else None
    if folder is not None or Path(model).is_file():
        if not (Path(model) / "model_index.json").is_file():
            return load_original_checkpoint(model)
    else:
        folder = AudioXPipeline.download(model)
    dtypes = {file.parent.name: _stored_dtype(file) for file in sorted(Path(folder).glob("*/*.safetensors"))}
    return AudioXPipeline.from_pretrained(
        folder, dtype={**dtypes, "default": torch.float32}, text_encoder=None, tokenizer=None
    )


def _stored_dtype(file: Path) -> torch.dtype:
    """Return the smallest dtype in a file. Layers that their component keeps in float32 stay in float32."""
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with safe_open(file, "pt") as tensors:
        found = {names.get(tensors.get_slice(key).get_dtype(), torch.float32) for key in tensors.keys()}
    return min(found, key=lambda dtype: dtype.itemsize)
