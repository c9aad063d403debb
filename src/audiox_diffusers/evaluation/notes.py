"""Settings that the figures depend on, and warnings about them."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .extraction import FACTS, Extraction
from .metrics import METRICS

SILENCE_DB = -50.0
# Just below the largest sample of 16-bit files.
CLIPPING = 0.999
COMPRESSED = (".mp3", ".m4a", ".aac", ".ogg", ".opus")
WIDTHS = {"vggish": 128, "cnn14-16k": 2048, "cnn14-32k": 2048, "passt": 768, "clap": 512}


def settings(extraction: Extraction) -> dict[str, Any]:
    """Return the settings that every figure depends on."""
    clips = extraction.clips
    return {
        "generated": len(clips.generated),
        "reference": len(clips.reference),
        "pairs": len(clips.pairs),
        "captioned": len(clips.captioned),
        "videos": len(clips.filmed),
        "reference_statistics": str(extraction.config.reference_statistics or "") or None,
        "audio_length_in_s": extraction.config.audio_length_in_s,
        "channels": "mean",
        "levels": "as they are, minus the mean",
        "sampling_rates": sorted({int(fact[1]) for fact in _facts(extraction, clips.generated)}),
        "reference_sampling_rates": sorted({int(fact[1]) for fact in _facts(extraction, clips.reference)}),
        "versions": {name: version(name) for name in ("audiox-diffusers", "torch", "torchaudio", "transformers")},
    }


def warnings(extraction: Extraction, chosen: list[str]) -> list[str]:
    """Return reasons to trust the figures less."""
    clips, found, rates = extraction.clips, [], {}
    for side, files in (("generated", clips.generated), ("reference", clips.reference)):
        facts = np.array(_facts(extraction, files))
        if len(facts):
            seconds, sampling_rates, levels, peaks = facts.T
            rates[side] = sorted(set(sampling_rates.astype(int).tolist()))
            silent, clipping = int((levels < SILENCE_DB).sum()), int((peaks > CLIPPING).sum())
            if silent:
                found.append(f"{silent} of {len(facts)} {side} files are silent (below {SILENCE_DB:g} dBFS)")
            if clipping:
                found.append(f"{clipping} of {len(facts)} {side} files clip")
            if extraction.config.audio_length_in_s is None and seconds.max() > 1.02 * seconds.min():
                found.append(f"{side} files last {seconds.min():.2f} to {seconds.max():.2f} s; set one length for all")
    if len(rates) == 2 and rates["generated"] != rates["reference"]:
        found.append(f"sampling rates differ: generated {rates['generated']}, reference {rates['reference']} Hz")
    if any(path.suffix.lower() in COMPRESSED for path in clips.reference.values()):
        found.append("references are compressed, and the low-pass of their codec counts as part of them")
    if clips.reference and 0 < len(clips.pairs) < len(clips.generated):
        unmatched = len(clips.generated) - len(clips.pairs)
        found.append(f"{unmatched} generated files have no reference of the same name")
    for name in chosen:
        width = WIDTHS.get(METRICS[name].network, 0)
        if METRICS[name].kind == "frechet" and len(clips.generated) <= width:
            found.append(f"{name} of {len(clips.generated)} clips in {width} dimensions is strongly biased")
    return found


def _facts(extraction: Extraction, files: dict[str, Path]) -> list[np.ndarray]:
    return list(extraction.each(list(files.values()), FACTS, "facts"))
