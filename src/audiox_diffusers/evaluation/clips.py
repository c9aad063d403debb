"""Files of an evaluation: generated sounds, references, captions and videos, matched by the stem of their names."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}
NAME_COLUMNS = ("name", "file_name", "id", "audiocap_id", "youtube_id", "ytid", "output")
CAPTION_COLUMNS = ("caption", "text", "captions", "sentence", "prompt")


@dataclass(frozen=True)
class EvaluationSet:
    """
    The files to compare.

    Attributes:
        generated: Generated files by name, sorted.
        reference: Reference files by name, sorted; empty without a reference set.
        captions: Caption by name. If a name has several captions, the first.
        videos: Video files by name.
    """

    generated: dict[str, Path]
    reference: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)

    @property
    def pairs(self) -> list[str]:
        """Names that were generated and have a reference."""
        return [name for name in self.generated if name in self.reference]

    @property
    def captioned(self) -> list[str]:
        """Names that were generated and have a caption."""
        return [name for name in self.generated if name in self.captions]

    @property
    def filmed(self) -> list[str]:
        """Names that were generated and have a video."""
        return [name for name in self.generated if name in self.videos]


def read_set(
    generated: Path, reference: Path | None = None, captions: Path | None = None, videos: Path | None = None
) -> EvaluationSet:
    """
    Find the files and match them.

    Args:
        generated, reference: Folders of sounds, or of films with sound.
        captions: CSV with a header or JSON lines, with a column of names and one of captions.
        videos: Folder of films.

    Raises:
        ValueError: A folder is empty or has two files of one name, or nothing in it matches the generated sounds.
    """
    sounds = AUDIO_SUFFIXES | VIDEO_SUFFIXES
    found = EvaluationSet(
        find_files("generated", generated, sounds),
        {} if reference is None else find_files("reference", reference, sounds),
        {} if captions is None else read_captions(captions),
        {} if videos is None else find_files("videos", videos, VIDEO_SUFFIXES),
    )
    for argument, path, matched in (("captions", captions, found.captioned), ("videos", videos, found.filmed)):
        if path is not None and not matched:
            raise ValueError(
                f"--{argument} {path}: none of its names matches a generated file (for example {_some(found)})"
            )
    return found


def find_files(argument: str, folder: Path, suffixes: set[str]) -> dict[str, Path]:
    """Return the files below a folder by stem, sorted; raise `ValueError` if there are none, or two of one stem."""
    if not folder.is_dir():
        raise NotADirectoryError(f"--{argument} {folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith("."):
            other = files.setdefault(path.stem, path)
            if other != path:
                raise ValueError(f"--{argument} {folder}: two files are called {path.stem}: {other}, {path}")
    if not files:
        raise ValueError(f"--{argument} {folder}: has no file with one of {', '.join(sorted(suffixes))}")
    return dict(sorted(files.items()))


def read_captions(path: Path) -> dict[str, str]:
    """Read captions by name from CSV or JSON lines. If a name has several captions, the first counts."""
    if not path.is_file():
        raise FileNotFoundError(f"--captions {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"--captions {path}: cannot be read ({error})") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"--captions {path}: has no rows with names and captions")
    columns = list(rows[0])
    name_column = next((name for name in NAME_COLUMNS if name in columns), None)
    caption_column = next((name for name in CAPTION_COLUMNS if name in columns), None)
    if name_column is None or caption_column is None:
        raise ValueError(
            f"--captions {path}: needs a column of {', '.join(NAME_COLUMNS)} and one of"
            f" {', '.join(CAPTION_COLUMNS)}; it has {', '.join(map(str, columns))}"
        )
    captions: dict[str, str] = {}
    for row in rows:
        captions.setdefault(_stem(str(row[name_column])), str(row[caption_column]))
    return captions


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES else path.name


def _some(found: EvaluationSet) -> str:
    return ", ".join(list(found.generated)[:3])


def captions_of_prompts(path: Path) -> dict[str, str]:
    """Read captions by output name from a prompt file of `audiox generate --batch`."""
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            values = json.loads(line)
            if values.get("prompt"):
                captions[Path(values.get("output", f"{number:05}")).stem] = values["prompt"]
    return captions
