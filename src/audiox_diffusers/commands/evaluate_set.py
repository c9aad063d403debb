"""`audiox evaluate --set`: generate the sounds of a set, and evaluate them alone."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.clips import EvaluationSet, some
from ..generation.request import Request
from ..media.files import MediaError
from ..media.recipe import Recipe, model_name, read_recipe
from ..pipelines.requests import FILE_KEYS
from . import batch
from .parser import parse_args

# Fields of a recipe that differ between the sounds of a set.
PER_SOUND = ("seed", "prompt", "negative_prompt", *FILE_KEYS, "length")


def generate(args: Namespace) -> dict[str, Request] | None:
    """
    Generate the sounds of `--set` that GENERATED lacks.

    Returns:
        The requests by the stem of their output; `None` if a line failed, which is printed.

    Raises:
        ValueError: Two outputs have the same stem, or an output exists that was generated otherwise.
    """
    words = _generate_args(args)
    requests: dict[str, Request] = {}
    for number, request in batch.read_requests(args.set, Path(args.generated), words).items():
        if isinstance(request, Request):
            other = requests.setdefault(request.output.stem, request)
            if other is not request:
                raise ValueError(
                    f"--set {args.set}, line {number}: another output is called {request.output.stem}, and files match"
                    " by the stem of their names"
                )
            _check_existing(request, args)
    return None if batch.run(words) else requests


def _generate_args(args: Namespace) -> Namespace:
    """Return the arguments of `audiox generate --batch` for the set."""
    values = {"model": args.model, "batch": args.set, "output": args.generated, "seed": args.seed}
    values |= {"steps": args.steps, "guidance": args.guidance, "device": args.device, "batch-size": args.batch_size}
    options = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return parse_args(["generate", *options])


def _check_existing(request: Request, args: Namespace) -> None:
    """Raise `ValueError` if the output exists, and its recipe is not the one that is asked for."""
    recipe = _recipe(request.output)
    if recipe is None:
        return
    asked = {"model": model_name(args.model), "seed": request.seed, "prompt": request.prompt}
    asked |= {"steps": args.steps, "guidance": args.guidance}
    for name, value in asked.items():
        found = getattr(recipe, name)
        if value is not None and found != value:
            raise ValueError(
                f"{request.output}: was generated with {name} {found}, not {value}; remove it or choose another folder"
            )


def _recipe(path: Path) -> Recipe | None:
    try:
        return read_recipe(path) if path.is_file() else None
    except (MediaError, OSError):
        return None  # The evaluation names files that cannot be read.


def restrict(clips: EvaluationSet, requests: dict[str, Request]) -> EvaluationSet:
    """Leave out files that the set does not name, and take captions and videos from it where none are given."""
    others = [name for name in clips.generated if name not in requests]
    notes = clips.notes
    if others:
        notes += (f"files in GENERATED that are not outputs of --set were left out ({len(others)}): {some(others)}",)
    captions = {name: request.prompt for name, request in requests.items() if request.prompt}
    videos = {name: request.video for name, request in requests.items() if request.video}
    return replace(
        clips,
        generated={name: path for name, path in clips.generated.items() if name in requests},
        captions=clips.captions or captions,
        videos=clips.videos or videos,
        notes=notes,
    )


def note_recipes(clips: EvaluationSet, found: list[dict[str, Any]]) -> EvaluationSet:
    """Add a note if the files were generated with different settings."""
    if len(found) < 2:
        return clips
    different = [name for name in found[0] if any(values.get(name) != found[0][name] for values in found)]
    return replace(clips, notes=(*clips.notes, f"files were generated with different {', '.join(different)}"))


def recipes(clips: EvaluationSet) -> list[dict[str, Any]]:
    """Return the settings that the generated files were made with, as their metadata says, each one once."""
    found = []
    for path in clips.generated.values():
        recipe = _recipe(path)
        if recipe is not None:
            values = {name: value for name, value in recipe.settings().items() if name not in PER_SOUND}
            values["version"] = recipe.version
            if values not in found:
                found.append(values)
    return found
