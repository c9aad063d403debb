"""Files of an evaluation: generated sounds, references, captions and videos, matched by the stem of their names."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

AUDIO_SUFFIXES = {".wav", ".flac", ".aif", ".aiff", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma"}
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
        notes: Reasons to trust figures less, found while reading.
    """

    generated: dict[str, Path]
    reference: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    texts, several = ({}, 0) if captions is None else read_all_captions(captions)
    notes = (
        (f"{captions} has several captions for some names ({several}), and the first of each counts",)
        if several
        else ()
    )
    found = EvaluationSet(
        find_files("GENERATED", generated, sounds),
        {} if reference is None else find_files("--reference", reference, sounds),
        texts,
        {} if videos is None else find_files("--videos", videos, VIDEO_SUFFIXES),
        notes,
    )
    for argument, path, matched in (("captions", captions, found.captioned), ("videos", videos, found.filmed)):
        if path is not None and not matched:
            raise ValueError(
                f"--{argument} {path}: none of its names matches a generated file (for example {some(list(found.generated))})"
            )
    return found


def find_files(argument: str, folder: Path, suffixes: set[str]) -> dict[str, Path]:
    """Return the files below a folder by stem, sorted; raise `ValueError` if there are none, or two of one stem."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{argument} {folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith("."):
            other = files.setdefault(path.stem, path)
            if other != path:
                raise ValueError(f"{argument} {folder}: two files are called {path.stem}: {other}, {path}")
    if not files:
        raise ValueError(f"{argument} {folder}: has no {', '.join(sorted(suffixes))} file")
    return dict(sorted(files.items()))


def read_captions(path: Path) -> dict[str, str]:
    """
    Read captions by name from CSV or JSON lines. If a name has several captions, the first counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, lacks a column, or a row lacks a name or a caption.
    """
    return read_all_captions(path)[0]


def read_all_captions(path: Path) -> tuple[dict[str, str], int]:
    """Return what [`read_captions`] does, and the number of names that have other captions too."""
    rows = _read_rows(path)
    if not rows or not all(isinstance(row, dict) for _, row in rows):
        raise ValueError(f"--captions {path}: has no rows with names and captions")
    columns = list(rows[0][1])
    name_column = next((name for name in NAME_COLUMNS if name in columns), None)
    caption_column = next((name for name in CAPTION_COLUMNS if name in columns), None)
    if name_column is None or caption_column is None:
        raise ValueError(
            f"--captions {path}: needs a column of {', '.join(NAME_COLUMNS)} and one of"
            f" {', '.join(CAPTION_COLUMNS)}; it has {', '.join(map(str, columns))}"
        )
    captions: dict[str, str] = {}
    several = set()
    for number, row in rows:
        name, caption = row.get(name_column), row.get(caption_column)
        if not isinstance(name, str | int) or not str(name).strip():
            raise ValueError(f"--captions {path}, line {number}: has no name in {name_column}")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"--captions {path}, line {number}: has no text in {caption_column}")
        name, caption = _stem(str(name).strip()), caption.strip()
        if captions.setdefault(name, caption) != caption:
            several.add(name)
    return captions, len(several)


def _read_rows(path: Path) -> list[tuple[int, object]]:
    """Return the rows of a file with their line numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"--captions {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            lines = enumerate(text.split("\n"), 1)
            return [(number, json.loads(line)) for number, line in lines if line.strip()]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        return [(reader.line_num, row) for row in reader]
    except json.JSONDecodeError as error:
        raise ValueError(f"--captions {path}: must be CSV or have a JSON object on each line ({error})") from None
    except (UnicodeDecodeError, csv.Error, RecursionError) as error:
        raise ValueError(f"--captions {path}: cannot be read ({error})") from None


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES else path.name


def some(names: Sequence[str]) -> str:
    """Return the first names, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
