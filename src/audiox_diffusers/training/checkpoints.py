"""Checkpoints of a run: written whole or not at all."""

import argparse
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .arguments import as_json, check_resumed

STATE = "training.json"
NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, in order."""
    found = {}
    for path in output_dir.glob("checkpoint-*"):
        if match := NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def find_checkpoint(output_dir: Path, name: str) -> Path | None:
    """
    The checkpoint of that name, or the newest for `"latest"`: `None` if there is none yet.

    Raises:
        ValueError: there is none of that name.
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
    Write `checkpoint-{step}` under another name, give it its own when it is complete, and only then remove the oldest
    ones. What a write that was cut short has left is removed before.

    Args:
        accelerator: of the run; all processes call this.
        output_dir: where the checkpoints are.
        step: optimizer steps taken.
        write: writes everything into the folder that it is given, on every process.
        limit: how many checkpoints to keep, `None` for all.

    Raises:
        OSError: it could not be written, because the disk is full, say. What was there before is left.
    """
    path = output_dir / f"checkpoint-{step}"
    temporary = output_dir / f".{path.name}"
    if accelerator.is_main_process:
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
        replaced = output_dir / f".{path.name}-replaced"
        # Removed under its own name, it would be there in half for a while.
        if path.exists():
            os.replace(path, replaced)
        os.replace(temporary, path)
        shutil.rmtree(replaced, ignore_errors=True)
        # Those of a run that was here before may be of later steps than the one just written, which stays.
        others = [other for other in checkpoints(output_dir).values() if other != path]
        surplus = 0 if limit is None else max(0, len(others) + 1 - limit)
        for old in others[:surplus]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def _is_write_error(error: Exception) -> bool:
    """torch and safetensors raise errors of their own where a file cannot be written."""
    text = str(error)
    return "PytorchStreamWriter" in text or "I/O error" in text or "No space left" in text


def write_json(path: Path, value: Any) -> None:
    """Plain JSON, indented."""
    path.write_text(json.dumps(value, indent=1))


def write_run(
    folder: Path, step: int, args: argparse.Namespace, configs: dict[str, dict], accelerator: Accelerator
) -> None:
    """
    Write what [`open_checkpoint`] asks of a checkpoint.

    Args:
        folder: of the checkpoint.
        step: optimizer steps taken.
        args: of the run.
        configs: of the networks that are trained, by name, as JSON holds them.
        accelerator: of the run.
    """
    state = {"step": step, "args": as_json(args), "configs": configs, "num_processes": accelerator.num_processes}
    write_json(folder / STATE, state)


def open_checkpoint(
    args: argparse.Namespace, configs: dict[str, dict], accelerator: Accelerator
) -> tuple[Path | None, int]:
    """
    The checkpoint that `--resume_from_checkpoint` names, and the optimizer steps before it: `None` and 0 if none is
    named, or the latest and there is none yet.

    Args:
        args, configs, accelerator: as of [`write_run`].

    Raises:
        ValueError: there is none of that name, or it is one of another run: with other arguments that decide what is
            computed, other networks, another number of processes.
    """
    if args.resume_from_checkpoint is None:
        return None, 0
    folder = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if folder is None:
        accelerator.print(f"{args.output_dir} has no checkpoint yet: starting at step 0")
        return None, 0
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    check_resumed(as_json(args), state["args"])
    check_configs(configs, state["configs"])
    if accelerator.num_processes != state["num_processes"]:
        raise ValueError(
            f"--resume_from_checkpoint: the run has {state['num_processes']} processes, not {accelerator.num_processes}"
        )
    return folder, state["step"]


def check_configs(configs: dict[str, dict], saved: dict[str, dict]) -> None:
    """
    Raise `ValueError` naming what differs between the configs of the networks and those of the checkpoint.

    Args:
        configs, saved: by name of the component, as JSON holds them.
    """
    changed = []
    for name in {**saved, **configs}:
        now, then = configs.get(name, {}), saved.get(name, {})
        changed += [
            f"{name}.{key} was {then.get(key)!r} and is {now.get(key)!r}"
            for key in {**then, **now}
            if then.get(key) != now.get(key)
        ]
    if changed:
        raise ValueError(f"--resume_from_checkpoint: the checkpoint is of another model: {'; '.join(changed)}")
