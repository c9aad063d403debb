"""A hint about words that the models of the package do not know."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from ..embedded import EMBEDDED_FOLDERS, EMBEDDED_MODEL
from ..messages import shortened
from ..scenes import SOUNDS
from ..scenes.scene import NUMBERS, WORDS
from .terminal import note


def note_unknown_words(model: str, prompts: Iterable[str | None]) -> None:
    """Name the words of the prompts that a model of the package was not trained on, in one line."""
    if model not in EMBEDDED_FOLDERS or Path(model).is_dir():
        return
    known = _known_words()
    words = {word: None for prompt in prompts for word in _split(prompt or "")}
    unknown = [word for word in words if word not in known]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        note(
            f"{model} does not know {', '.join(map(shortened, unknown[:3]))}{more}: it knows {', '.join(SOUNDS)}."
            " For any sound use a released model: --model audiox"
        )


def _known_words() -> set[str]:
    captions = [*NUMBERS, "then", "silence", *(text for texts in WORDS.values() for text in texts)]
    with open(EMBEDDED_FOLDERS[EMBEDDED_MODEL] / "sounds.csv", encoding="utf-8", newline="") as file:
        captions += [row["caption"] for row in csv.DictReader(file)]
    return {word for caption in captions for word in _split(caption)}


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
