"""The trained pipeline as a folder that `from_pretrained` loads, and its upload to the Hub."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import RepoUrl, auth_check, create_repo, upload_folder

from ..atomic import filling, replacing
from ..card_text import string
from ..messages import first_line
from ..pipelines import AudioXPipeline
from .arguments import TrainingArguments
from .cards import CARD, model_name, training_card

INDEX = "model_index.json"
CONFIG = "config.json"
# Names of weight files without a variant, such as model-00001-of-00002.safetensors and model.safetensors.index.json.
WEIGHTS = re.compile(r"[^.]+\.safetensors(\.index\.json)?")


def export_pipeline(
    args: TrainingArguments,
    pipe: AudioXPipeline,
    names: tuple[str, ...],
    state_dict: dict,
    log: Path,
    card: str | None = None,
) -> None:
    """
    Write the pipeline with its trained weights and a model card into the output folder, atomically.

    Other components keep the files of the base: training may hold them in half precision.

    Args:
        args: Options of the run.
        pipe: The pipeline that was trained.
        names: Its trained components.
        state_dict: Weights of the [`AudioXTrainingModel`].
        log: Log of the run, for the card.
        card: Model card. Defaults to a [`training_card`].
    """
    trained = {}
    for name in names:
        module = getattr(pipe, name)
        prefix = f"{name}." if name in ("transformer", "conditioner") else f"encoders.{name}."
        weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        # A copy takes the weights, because those of the module may be sharded over several devices.
        with torch.device("meta"):
            from_config = type(module).from_config if isinstance(module, ModelMixin) else type(module)
            trained[name] = from_config(module.config)
        trained[name].load_state_dict(weights, assign=True, strict=isinstance(module, ModelMixin))
    defaults = {name: pipe.config[name] for name in ("default_num_inference_steps", "default_guidance_scale")}
    whole = AudioXPipeline(**{**pipe.components, **trained}, **defaults)

    with filling(args.output_dir) as folder:
        whole.save_pretrained(folder)
        for name, component in pipe.components.items():
            if isinstance(component, torch.nn.Module) and name not in names:
                _restore_stored(component, folder / name, args.variant)
        _remove_origins(folder)
        (folder / CARD).write_text(card or training_card(args, whole, read_log(log)), encoding="utf-8")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the report of each step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _restore_stored(component: torch.nn.Module, folder: Path, variant: str | None) -> None:
    """Replace a component's files in `folder` by those that it was loaded from, without the variant in their names."""
    origin = Path(getattr(component, "name_or_path", None) or component.config.get("_name_or_path", ""))
    tag = "" if variant is None else f".{variant}"
    found: dict[str, dict[str, Path]] = {tag: {}, "": {}}
    for path in origin.glob("*.safetensors*") if (origin / CONFIG).is_file() else ():
        name = path.name.replace(tag, "")
        if WEIGHTS.fullmatch(name):
            found["" if name == path.name else tag][name] = path
    # As in loading, a component without files of the variant has others.
    stored = found[tag] or found[""]
    if not stored:
        return
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    shutil.copyfile(origin / CONFIG, folder / CONFIG)
    for name, path in stored.items():
        if name.endswith(".json"):
            (folder / name).write_text(path.read_text(encoding="utf-8").replace(tag, ""), encoding="utf-8")
        else:
            shutil.copyfile(path, folder / name)


def _remove_origins(folder: Path) -> None:
    """Remove the paths on this machine that diffusers writes into configs."""
    for path in (folder / INDEX, *folder.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def push_to_hub(args: TrainingArguments) -> str:
    """Upload the files of `export_pipeline`, and no others. Returns the repository's address."""
    index = json.loads((args.output_dir / INDEX).read_text(encoding="utf-8"))
    components = [name for name, value in index.items() if isinstance(value, list)]
    return upload(args, [INDEX, "pipeline.py", *(f"{name}/*" for name in components)])


def check_repository(args: TrainingArguments) -> None:
    """
    Create the repository of `--push_to_hub`, or check that it may be written to.

    Raises:
        ValueError: The Hub cannot be reached, or refuses.
    """
    try:
        repo = open_repository(args)
        auth_check(repo.repo_id, token=args.hub_token, write=True)
    except Exception as error:  # of the Hub, or of the network
        raise ValueError(
            f"--push_to_hub: cannot write to {model_name(args)} on the Hub; check --hub_model_id and --hub_token"
            f" ({first_line(error)})"
        ) from error


def open_repository(args: TrainingArguments) -> RepoUrl:
    """Return the repository of the trained model. Create it if it is missing."""
    return create_repo(model_name(args), token=args.hub_token, exist_ok=True)


def upload(args: TrainingArguments, patterns: list[str]) -> str:
    """Upload the card, and the files in the output folder that match `patterns`. Returns the repository's address."""
    folder, name = args.output_dir, model_name(args)
    repo = open_repository(args)
    # The Hub fills in a missing namespace.
    card = (folder / CARD).read_text(encoding="utf-8")
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card.replace(f"({string(name)})", f"({string(repo.repo_id)})"), encoding="utf-8")
    upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        commit_message="Trained with audiox-diffusers",
        allow_patterns=[CARD, *patterns],
        token=args.hub_token,
    )
    return repo
