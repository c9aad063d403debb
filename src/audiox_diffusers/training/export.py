"""The trained pipeline as a folder that `from_pretrained` loads, and its way to the Hub."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import create_repo, upload_folder

from ..pipelines import AudioXPipeline
from .model_card import model_name, training_card

CARD, INDEX = "README.md", "model_index.json"


def export_pipeline(
    args: argparse.Namespace, pipe: AudioXPipeline, names: tuple[str, ...], state_dict: dict, log: Path
) -> None:
    """
    Write the pipeline with trained weights into the output folder, with a model card; all of it is written beside
    before anything there is replaced.

    Args:
        args: of the run.
        pipe: the pipeline that was trained.
        names: its trained components.
        state_dict: of the [`AudioXTrainingModel`].
        log: the losses, for the card.
    """
    trained = {}
    for name in names:
        module = getattr(pipe, name)
        prefix = f"{name}." if name in ("transformer", "conditioner") else f"encoders.{name}."
        weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        # A twin without memory of its own takes the weights: those of the module may be in parts on several devices.
        with torch.device("meta"):
            from_config = type(module).from_config if isinstance(module, ModelMixin) else type(module)
            trained[name] = from_config(module.config)
        trained[name].load_state_dict(weights, assign=True, strict=isinstance(module, ModelMixin))
    whole = AudioXPipeline(**{**pipe.components, **trained}, **_defaults(pipe))

    with staged(args.output_dir) as temporary:
        whole.save_pretrained(temporary)
        _forget_origins(temporary)
        (temporary / CARD).write_text(training_card(args, whole, read_log(log)), encoding="utf-8")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write into; what is in it replaces what `folder` has of the same names, once all is written."""
    temporary = folder / ".model"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The report of each step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _defaults(pipe: AudioXPipeline) -> dict[str, float]:
    return {name: pipe.config[name] for name in ("default_num_inference_steps", "default_guidance_scale")}


def _forget_origins(folder: Path) -> None:
    """diffusers writes into configs where it loaded them from: a path of this machine, and not what was trained."""
    for path in (folder / INDEX, *folder.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def push_to_hub(args: argparse.Namespace) -> str:
    """Upload what `export_pipeline` wrote, and nothing else that is in the output folder; returns its address."""
    index = json.loads((args.output_dir / INDEX).read_text(encoding="utf-8"))
    components = [name for name, value in index.items() if isinstance(value, list)]
    return upload(args, [INDEX, "pipeline.py", *(f"{name}/*" for name in components)])


def upload(args: argparse.Namespace, patterns: list[str]) -> str:
    """Upload the card and the files of the output folder that match one of the patterns; returns their address."""
    folder = args.output_dir
    repo = create_repo(model_name(args), token=args.hub_token, exist_ok=True)
    # Only the Hub knows in whose name a model without one is kept.
    card = (folder / CARD).read_text(encoding="utf-8")
    (folder / CARD).write_text(card.replace(f'("{model_name(args)}")', f'("{repo.repo_id}")'), encoding="utf-8")
    upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        commit_message="Trained with audiox-diffusers",
        allow_patterns=[CARD, *patterns],
        token=args.hub_token,
    )
    return repo
