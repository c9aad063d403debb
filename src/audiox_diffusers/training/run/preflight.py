"""Checks of the surroundings of a run, before anything slow starts."""

import os
from argparse import ArgumentParser
from itertools import takewhile
from pathlib import Path

import yaml
from accelerate import Accelerator

from ...compilation import check_compiler
from .interruption import LAUNCHED


def check_processes(accelerator: Accelerator) -> None:
    """
    Check that there are as many processes as the launcher was asked for.

    Raises:
        ValueError: `WORLD_SIZE` or `accelerate launch` says another number.
    """
    found = accelerator.num_processes
    size = os.environ.get("WORLD_SIZE", str(found))
    if size != str(found):
        raise ValueError(
            f"WORLD_SIZE is {size}, but this run has {found} process{'es' * (found > 1)}. Start it with accelerate launch"
            " or torchrun, which set all variables that the processes need, or unset WORLD_SIZE"
        )
    asked = _asked_of_launcher() if LAUNCHED in os.environ and found == 1 else None
    if asked is not None and asked > 1:
        raise ValueError(
            f"accelerate launch was asked for {asked} processes, but has started one. With --cpu, or on a machine"
            " without GPUs, it starts no others; leave out --num_processes, or use"
            f" torchrun --standalone --nproc_per_node {asked}"
        )


def _asked_of_launcher() -> int | None:
    """Return `--num_processes` of the `accelerate launch` that started this process, from Linux' list of processes."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--config_file", "--config-file", type=Path)
    first = next((number for number, word in enumerate(words) if word.removesuffix(".py").endswith("launch")), 0)
    options = takewhile(lambda word: word not in ("-m", "--module") and not word.endswith(".py"), words[first + 1 :])
    given, _ = parser.parse_known_args(list(options))
    if given.num_processes is not None or given.config_file is None:
        return given.num_processes
    try:
        return int(yaml.safe_load(given.config_file.read_text()).get("num_processes"))
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        return None


def check_backend(accelerator: Accelerator) -> None:
    """
    Compile a small function with the backend of `accelerate launch --dynamo_backend`.

    Raises:
        ValueError: The backend does not work here.
    """
    plugin = accelerator.state.dynamo_plugin
    backend = plugin.backend.value.lower()
    if backend != "no":
        check_compiler(f"--dynamo_backend {backend}", accelerator.device, backend, plugin.mode)
