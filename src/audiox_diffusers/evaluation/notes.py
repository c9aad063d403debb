"""Settings that the figures depend on, and warnings about them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .catalog import NETWORKS
from .clips import some
from .extraction import Extraction
from .features import file_digest
from .metrics import METRICS
from .report import FACTS, Figure
from .statistics_files import load_origin

SILENCE_DB = -50.0
# Just below the largest sample of 16-bit files.
CLIPPING = 0.999
# Lengths that differ by less count as one.
SAME_LENGTH = 1.02
COMPRESSED = (".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma")
PACKAGES = ("audiox-diffusers", "torch", "torchaudio", "transformers", "numpy", "av", "audiobox-aesthetics")


class SideFacts:
    """Lengths, sampling rates and levels of the files of one side."""

    def __init__(self, extraction: Extraction, files: Mapping[str, Path]):
        rows = list(extraction.each(list(files.values()), FACTS, "facts"))
        self.seconds, rates, self.levels, self.peaks = np.array(rows).reshape(-1, 4).T
        self.rates = sorted(set(rates.astype(int).tolist()))

    @property
    def count(self) -> int:
        """Number of files that can be read."""
        return len(self.seconds)

    @property
    def silent(self) -> int:
        """Number of silent files."""
        return int((self.levels < SILENCE_DB).sum())

    @property
    def clipped(self) -> int:
        """Number of files that reach full scale."""
        return int((self.peaks > CLIPPING).sum())

    @property
    def length(self) -> str:
        """Shortest and longest length, for messages."""
        shortest, longest = self.seconds.min(), self.seconds.max()
        return f"{shortest:.2f} s" if longest < SAME_LENGTH * shortest else f"{shortest:.2f} to {longest:.2f} s"

    def to_json(self) -> dict[str, Any]:
        """Return a summary for the report."""
        lengths = [float(self.seconds.min()), float(self.seconds.max())] if self.count else None
        return {"readable": self.count, "silent": self.silent, "clipped": self.clipped, "seconds": lengths}


def settings(extraction: Extraction) -> dict[str, Any]:
    """Return the settings that every figure depends on."""
    clips, config = extraction.clips, extraction.config
    generated, reference = (SideFacts(extraction, files) for files in (clips.generated, clips.reference))
    statistics = config.reference_statistics
    captions = json.dumps({name: clips.captions[name] for name in clips.captioned}, sort_keys=True)
    return {
        **config.origin,
        "generated": len(clips.generated),
        "reference": len(clips.reference),
        "pairs": len(clips.pairs),
        "captioned": len(clips.captioned),
        "videos": len(clips.filmed),
        "files": {"generated": generated.to_json(), "reference": reference.to_json()},
        "sha256": {
            "generated": _hash(extraction, clips.generated.items()),
            "reference": _hash(extraction, clips.reference.items()),
            "videos": _hash(extraction, ((name, clips.videos[name]) for name in clips.filmed)),
            "captions": hashlib.sha256(captions.encode()).hexdigest() if clips.captioned else None,
            "reference_statistics": file_digest(statistics) if statistics else None,
        },
        "reference_statistics": str(statistics) if statistics else None,
        "audio_length_in_s": config.audio_length_in_s,
        "channels": "mean",
        "levels": "as they are; each figure says whether the mean is removed",
        "resampling": "torchaudio.functional.resample with its defaults",
        "sampling_rates": generated.rates,
        "reference_sampling_rates": reference.rates,
        "device": str(config.device),
        "batch_size": config.batch_size,
        "versions": _versions(),
    }


def _hash(extraction: Extraction, files: Iterable[tuple[str, Path]]) -> str | None:
    """Return a hash of the names and the contents of files; `None` without files."""
    lines = []
    for name, path in sorted(files):
        try:
            lines.append(f"{name}\0{extraction.digest(path)}\n")
        except OSError:
            lines.append(f"{name}\0unreadable\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def warnings(extraction: Extraction, figures: list[Figure]) -> list[str]:
    """Return reasons to trust the figures less."""
    clips = extraction.clips
    sides = {
        side: facts
        for side, files in (("generated", clips.generated), ("reference", clips.reference))
        if (facts := SideFacts(extraction, files)).count
    }
    found = [*clips.notes, *_unmatched(extraction)]
    for side, facts in sides.items():
        for count, problem in (
            (facts.silent, f"silent (below {SILENCE_DB:g} dBFS)"),
            (facts.clipped, "clipped"),
        ):
            if count:
                found.append(f"{count} of {facts.count} {side} files {'is' if count == 1 else 'are'} {problem}")
    found += _lengths(extraction, sides)
    if len(sides) == 2 and sides["generated"].rates != sides["reference"].rates:
        rates = [", ".join(map(str, facts.rates)) for facts in sides.values()]
        found.append(f"sampling rates differ: generated {rates[0]} Hz, reference {rates[1]} Hz")
    if any(path.suffix.lower() in COMPRESSED for path in clips.reference.values()):
        found.append("some reference files are compressed, and their codec may have removed high frequencies")
    for figure in figures:
        found += _bias(figure, len(clips.reference))
    return found


def _unmatched(extraction: Extraction) -> list[str]:
    clips = extraction.clips
    found = []
    for thing, names in (
        ("reference of the same name", clips.pairs),
        ("caption", clips.captioned),
        ("video of the same name", clips.filmed),
    ):
        if 0 < len(names) < len(clips.generated):
            missing = sorted(set(clips.generated) - set(names))
            found.append(f"{len(missing)} of {len(clips.generated)} generated files have no {thing}: {some(missing)}")
    if 0 < len(clips.pairs) < len(clips.reference):
        missing = sorted(set(clips.reference) - set(clips.pairs))
        found.append(
            f"{len(missing)} of {len(clips.reference)} reference files have no generated file of the same name:"
            f" {some(missing)}"
        )
    return found


def _lengths(extraction: Extraction, sides: Mapping[str, SideFacts]) -> list[str]:
    wanted, found = extraction.config.audio_length_in_s, []
    if sides and wanted is None:
        seconds = np.concatenate([facts.seconds for facts in sides.values()])
        if seconds.max() > SAME_LENGTH * seconds.min():
            lengths = ", ".join(f"{side} {facts.length}" for side, facts in sides.items())
            found.append(f"lengths differ: {lengths}; cut all files to one length with --audio-length")
    for side, facts in sides.items():
        short = 0 if wanted is None else int((facts.seconds * SAME_LENGTH < wanted).sum())
        if short:
            found.append(
                f"{short} of {facts.count} {side} files {'is' if short == 1 else 'are'} shorter than the"
                f" {wanted:g} s of --audio-length: {facts.length}"
            )
    statistics = extraction.config.reference_statistics
    if statistics is not None:
        origins = [load_origin(statistics, network) for network in NETWORKS]
        for length in {origin.audio_length_in_s for origin in origins if origin is not None} - {wanted}:
            found.append(f"{statistics} was computed with {_option(length)}, and the figures with {_option(wanted)}")
    return found


def _option(length: float | None) -> str:
    return "whole files" if length is None else f"--audio-length {length:g}"


def _bias(figure: Figure, references: int) -> list[str]:
    """Warn about a Fréchet distance of too few clips."""
    if METRICS[figure.metric].kind != "frechet":
        return []
    width = figure.input["width"]
    counts = {"generated": figure.count, "reference": references or figure.details["reference_embeddings"]}
    few = [f"{count} {side}" for side, count in counts.items() if count is not None and count <= width]
    message = f"{figure.metric} overestimates the distance: {' and '.join(few)} clips are few for {width} dimensions"
    return [message] if few else []
