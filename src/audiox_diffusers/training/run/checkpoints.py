"""Checkpoints of a run, each written whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import ModelMixin
from transformers import PreTrainedModel

from ...loaders import architecture
from ...messages import shortened
from ..arguments import RunArguments, as_json, relative_to_output
from .state_files import check_count, read_json, reading, write_json

STATE = "training.json"
NAME = re.compile(r"checkpoint-(\d+)")
# Suffixes of pickle files. Earlier versions wrote some, and this one writes none.
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}

# All other options decide what is computed, and must stay the same for an exact resume.
MAY_CHANGE = {
    "output_dir",
    "max_train_steps",
    "num_train_epochs",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "tracker_project_name",
    "logging_dir",
    "validation_prompts",
    "validation_steps",
    "validation_inference_steps",
    "validation_guidance_scale",
    "validation_metrics",
    "validation_reference",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "max_bad_records",
    "cache_dir",
    "gradient_checkpointing",
    "gradient_checkpointing_interval",
    "activation_offloading",
    "ema_device",
    "enable_tiling",
    "vae_config",  # its contents are compared as the config of the network
}

# Options with folders that may be inside the output folder, and then move with it.
FOLDERS = ("cache_latents", "class_data_dir")


def checkpoints(output_dir: Path) -> dict[int, Path]:
    """Find the complete checkpoints of a run, by step and in order."""
    found = {}
    for path in output_dir.glob("checkpoint-*"):
        match = NAME.fullmatch(path.name)
        if match and (path / STATE).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def find_checkpoint(output_dir: Path, name: str) -> Path | None:
    """
    Find a checkpoint by name. `"latest"` is the newest one, or `None` if there is none yet.

    Raises:
        ValueError: There is no checkpoint of that name.
    """
    found = checkpoints(output_dir)
    if name == "latest":
        return found[max(found)] if found else None
    path = output_dir / Path(name).name
    if path not in found.values():
        names = ", ".join(path.name for path in found.values()) or "none"
        raise ValueError(f"--resume_from_checkpoint {name}: {output_dir} has {names}")
    return path


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, step: int, write: Callable[[Path], None], limit: int | None
) -> Path:
    """
    Write `checkpoint-{step}` under a temporary name, rename it when it is complete, then remove the oldest ones.

    Args:
        accelerator: Accelerator of the run. All processes call this.
        output_dir: Folder of the checkpoints.
        step: Number of optimizer steps taken.
        write: Writes the state into a folder, on every process.
        limit: Number of checkpoints to keep, `None` for all.

    Raises:
        OSError: Writing failed, for example on a full disk. Earlier checkpoints are still there.
    """
    path = output_dir / f"checkpoint-{step}"
    temporary = output_dir / f".{path.name}"
    if accelerator.is_main_process:
        # Remains of a run that was killed while it wrote or removed a checkpoint.
        for left in output_dir.glob(".checkpoint-*"):
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write(temporary)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError) and not _is_write_error(error):
            raise
        kept = ", ".join(path.name for path in checkpoints(output_dir).values()) or "none"
        raise OSError(f"{path} could not be written ({error}). Complete checkpoints: {kept}.") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        old = [_hide(path)] if path.exists() else []
        os.replace(temporary, path)
        # An earlier run in this folder may have left checkpoints of later steps.
        others = [other for other in checkpoints(output_dir).values() if other != path]
        surplus = 0 if limit is None else max(0, len(others) + 1 - limit)
        for hidden in old + [_hide(other) for other in others[:surplus]]:
            shutil.rmtree(hidden)
    accelerator.wait_for_everyone()
    return path


def _hide(checkpoint: Path) -> Path:
    """Rename a checkpoint before it is removed, so that a kill leaves no half of it under its own name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}-old")
    os.replace(checkpoint, hidden)
    return hidden


def _is_write_error(error: Exception) -> bool:
    """torch and safetensors raise their own exceptions when a file cannot be written."""
    known = ("PytorchStreamWriter", "inline_container", "iostream error", "I/O error", "No space left")
    return any(text in str(error) for text in known)


def write_run(folder: Path, step: int, args: RunArguments, configs: dict[str, dict], accelerator: Accelerator) -> None:
    """
    Write the description of a run that [`open_checkpoint`] checks.

    Args:
        folder: Folder of the checkpoint.
        step: Number of optimizer steps taken.
        args: Options of the run.
        configs: Configs of the trained networks by name, see [`config_of`].
        accelerator: Accelerator of the run.
    """
    state = {"step": step, "args": as_json(args), "configs": configs, "num_processes": accelerator.num_processes}
    write_json(folder / STATE, state)


def open_checkpoint(args: RunArguments, configs: dict[str, dict], accelerator: Accelerator) -> tuple[Path | None, int]:
    """
    Find the checkpoint that `--resume_from_checkpoint` names.

    Args:
        args, configs, accelerator: See [`write_run`].

    Returns:
        The checkpoint and its step. `None` and 0 if none is named, or the latest is asked for and there is none yet.

    Raises:
        ValueError: There is no checkpoint of that name, or it cannot be used. Or its run had other options that decide
            what is computed, other networks, or another number of processes.
    """
    if args.resume_from_checkpoint is None:
        return None, 0
    folder = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if folder is None:
        accelerator.print(f"{args.output_dir} has no checkpoint yet: starting at step 0")
        return None, 0
    _refuse_pickles(folder)
    state = read_run(folder / STATE)
    _check_arguments(as_json(args), state["args"])
    _check_configs(configs, state["configs"])
    if accelerator.num_processes != state["num_processes"]:
        raise ValueError(
            f"--resume_from_checkpoint: the run has {state['num_processes']} processes, not {accelerator.num_processes}"
        )
    return folder, state["step"]


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        with reading(folder):
            raise ValueError(
                f"{', '.join(pickles)} {'is a pickle file' if len(pickles) == 1 else 'are pickle files'}, which earlier"
                " versions wrote and which could run code. Finish this run with the version that began it, or start it"
                " again in another --output_dir."
            )


def read_run(path: Path) -> dict[str, Any]:
    """
    Read what [`write_run`] wrote.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    state = read_json(path)
    with reading(path):
        for name in ("step", "num_processes"):
            check_count(state[name], name)
        for name, value in (("args", state["args"]), ("configs", state["configs"]), *state["configs"].items()):
            if not isinstance(value, dict):
                raise ValueError(f"{name} must be an object, got {shortened(value)}")
    return state


def _check_arguments(args: dict[str, Any], saved: dict[str, Any]) -> None:
    changed = [
        f"--{name} was {saved.get(name)!r} and is {value!r}"
        for name, value in args.items()
        if name not in MAY_CHANGE and _resolved(saved, name) != _resolved(args, name)
    ]
    if changed:
        raise ValueError(f"--resume_from_checkpoint needs the options that the run began with: {'; '.join(changed)}")


def _resolved(args: dict[str, Any], name: str) -> Any:
    value = args.get(name)
    return relative_to_output(value, args["output_dir"]) if name in FOLDERS and value is not None else value


def _check_configs(configs: dict[str, dict], saved: dict[str, dict]) -> None:
    changed = []
    for name in {**saved, **configs}:
        now, then = configs.get(name, {}), saved.get(name, {})
        changed += [
            f"{name}.{key} was {then.get(key)!r} and is {now.get(key)!r}"
            for key in {**then, **now}
            if then.get(key) != now.get(key)
        ]
    if changed:
        raise ValueError(f"--resume_from_checkpoint: the checkpoint has another model: {'; '.join(changed)}")


def config_of(model: ModelMixin | PreTrainedModel) -> dict[str, Any]:
    """Return a network's [`architecture`] as JSON values."""
    config = json.loads(model.config.to_json_string()) if isinstance(model, PreTrainedModel) else dict(model.config)
    return json.loads(json.dumps(architecture(config)))
