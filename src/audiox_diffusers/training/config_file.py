"""Config files: the options of a training command as YAML, with a list of datasets that have options of their own."""

import difflib
import math
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..atomic import replacing
from ..loaders import public_name
from .dataset_list import DatasetOptions

CONFIG = "run.yaml"
DATASETS = "datasets"
# Options that say where a run happens, not what it computes. A model card leaves them out.
LOCAL = {
    "cache_dir",
    "cache_latents",
    "ema_sigma_rel",
    "hub_model_id",
    "logging_dir",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
}


@dataclass
class ConfigFile:
    """
    What a config file says.

    Attributes:
        argv: Its options as a command line.
        datasets: Options of each dataset, as in [`DatasetOptions`]. `None` if the file has no list of datasets.
    """

    argv: list[str]
    datasets: list[dict[str, Any]] | None = None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is most like `name`, for the end of a message."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; did you mean {found[0]}?" if found else ""


def read_config(path: Path, parser: ArgumentParser, columns: Iterable[str], tasks: Iterable[str]) -> ConfigFile:
    """
    Read a config file. Its keys are the options of `parser`, and `datasets`.

    Raises:
        ValueError: The file cannot be read, or a key or value is wrong. The message names it.
    """
    values = _load(path)
    options = {
        name.lstrip("-").replace("-", "_"): name for action in parser._actions for name in action.option_strings
    }
    config = ConfigFile([])
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name == DATASETS:
            config.datasets = _datasets(path, value, tuple(columns), tuple(tasks))
        elif name not in options or name in ("config", "help", "h"):
            raise ValueError(f"--config {path}: unknown key {key!r}{nearest(name, {*options, DATASETS} - {'h'})}")
        elif value is not None:
            config.argv += _words(path, options[name], value)
    return config


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"--config {path}: {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must have lines such as `seed: 1`, got {type(values).__name__}")
    return values


def _words(path: Path, option: str, value: Any) -> list[str]:
    """Return a value as words of a command line."""
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list):
        if any(isinstance(item, (list, Mapping)) for item in value):
            raise ValueError(
                f"--config {path}: {option.lstrip('-').replace('-', '_')} must be a list of plain values, got {value}"
            )
        return [option, *map(str, value)] if value else []
    return [f"{option}={value}"]


def _datasets(path: Path, value: Any, columns: tuple[str, ...], tasks: tuple[str, ...]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"--config {path}: {DATASETS} must be a list with at least one dataset, got {value!r}")
    return [_dataset(f"--config {path}: {DATASETS}[{n}]", item, columns, tasks) for n, item in enumerate(value)]


def _dataset(place: str, value: Any, columns: tuple[str, ...], tasks: tuple[str, ...]) -> dict[str, Any]:
    value = {"path": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise ValueError(f"{place} must be a path, or have a path, got {value!r}")
    known = [field.name for field in fields(DatasetOptions)]
    _check_keys(place, value, known)
    for name in ("config_name", "split", "revision", "media_dir"):
        if value.get(name) is not None and not isinstance(value[name], str):
            raise ValueError(f"{place}.{name} must be text, got {value[name]!r}")
    for name, allowed in (("columns", columns), ("tasks", tasks)):
        if not isinstance(value.get(name, {}), dict | None):
            raise ValueError(f"{place}.{name} must map names to values, got {value[name]!r}")
        _check_keys(f"{place}.{name}", value.get(name) or {}, allowed)
    for name, column in (value.get("columns") or {}).items():
        if not isinstance(column, str):
            raise ValueError(f"{place}.columns.{name} must be the name of a column or none, got {column!r}")
    numbers = {f"tasks.{name}": weight for name, weight in (value.get("tasks") or {}).items()}
    numbers |= {name: value[name] for name in ("weight", "start_offset") if value.get(name) is not None}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{place}.{name} must be a finite number, got {number!r}")
        if name == "weight" and number <= 0:
            raise ValueError(f"{place}.{name} must be above 0, got {number}")
        if name.startswith("tasks.") and number < 0:
            raise ValueError(f"{place}.{name} must be 0 or more, got {number}")
    if value.get("tasks") is not None and not sum(value["tasks"].values()) > 0:
        raise ValueError(f"{place}.tasks must have a weight above 0, got {value['tasks']}")
    return {name: item for name, item in value.items() if item is not None}


def _check_keys(place: str, value: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in value:
        if key not in known:
            raise ValueError(f"{place}: unknown key {key!r}{nearest(str(key), known)}")


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the options of a run, as `as_json` returns them, into a folder. `--config` reads the file."""
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(config_text(values), encoding="utf-8")


def config_text(values: Mapping[str, Any]) -> str:
    """Return options as YAML."""
    values = {name: value for name, value in values.items() if value not in (None, [])}
    own = values.pop("dataset_options", None)
    if own is not None:
        paths, weights = values.pop("dataset"), values.pop("dataset_weights")
        values[DATASETS] = [
            {"path": path, "weight": weight, **options}
            for path, weight, options in zip(paths, weights, own, strict=True)
        ]
    return yaml.safe_dump(values, sort_keys=False, width=math.inf)


def public_config(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the options that differ from their defaults as YAML, without the paths of this machine."""
    changed = {
        name: _public(value)
        for name, value in values.items()
        if name not in LOCAL and (name not in defaults or value != defaults[name])
    }
    return config_text(changed)


def _public(value: Any) -> Any:
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, str) and (Path(value).is_absolute() or ("/" in value and Path(value).exists())):
        return public_name(value)
    return value
