"""Settings that decide the contents of a latent cache."""

import json
from pathlib import Path
from typing import Any

from ...pipelines import AudioXPipeline
from ..arguments import COLUMNS, TrainingArguments
from ..run.checkpoints import config_of
from .encoding import ENCODERS
from .sources import MixedDataset

# Most differences that an error lists, and characters of a value that it shows.
DIFFERENCES, CHARACTERS = 3, 40


def cache_settings(args: TrainingArguments, pipe: AudioXPipeline, datasets: list[MixedDataset]) -> dict[str, Any]:
    """
    Return all settings that decide the contents of a cache, as JSON values by the names that users know.

    Neither the seed nor `--crop` is among them, because windows are cut out when a cache is read.
    """
    settings = {
        "--dataset": ", ".join(args.dataset),
        "--pretrained_model_name_or_path": args.pretrained_model_name_or_path,
        "--revision": args.revision,
    }
    for number, dataset in enumerate(datasets, 1):
        source, options, found = dataset.source.source, dataset.options, dataset.source.found
        of = f" of dataset {number}" if len(datasets) > 1 else ""
        settings |= {
            f"--dataset_config_name{of}": options.config_name,
            f"--dataset_split{of}": options.split,
            f"--dataset_revision{of}": options.revision,
            f"--media_dir{of}": options.media_dir,
            f"start_offset{of}": options.start_offset,
            **{f"--{name}_column{of}": " or ".join(found.get(name, ["none"])) for name in COLUMNS},
            f"the number of shards{of}": source.num_shards,
            f"the number of rows{of}": source.num_rows,
        }
    components = [name for name in ENCODERS if getattr(pipe, name) is not None]
    dtypes = {str(getattr(pipe, name).dtype).removeprefix("torch.") for name in components if name != "vae"}
    settings["the encoders' precision (--mixed_precision)"] = " and ".join(sorted(dtypes))
    for name in (*components, "conditioner"):
        config = config_of(getattr(pipe, name))
        settings |= {f"{name}.{key}": config[key] for key in config if key != "dtype"}
    settings["transformer.sample_size"] = pipe.transformer.config.sample_size
    return json.loads(json.dumps(settings))


def check_settings(folder: Path, existing: dict[str, Any], wanted: dict[str, Any]) -> None:
    """
    Check that a cache has the wanted settings.

    Raises:
        ValueError: It has others. The message names the first ones.
    """
    names = [name for name in {**wanted, **existing} if existing.get(name) != wanted.get(name)]
    if not names:
        return
    differences = [_difference(name, existing.get(name), wanted.get(name)) for name in names[:DIFFERENCES]]
    if len(names) > DIFFERENCES:
        differences.append(f"{len(names) - DIFFERENCES} more")
    raise ValueError(
        f"--cache_latents {folder} has a cache of another run: {', '.join(differences)}; choose another folder, or"
        " delete this one"
    )


def _difference(name: str, was: Any, now: Any) -> str:
    values = [value if isinstance(value, str) else json.dumps(value) for value in (was, now)]
    values = ["none" if value == "null" else value for value in values]
    if max(map(len, values)) > CHARACTERS:
        return f"{name} differs"
    return f"{name} was {values[0]} and is {values[1]}"
