"""
Write free sounds with captions as a dataset folder:

    python training/free_sounds/make_sounds.py sounds

This downloads Debian packages with `apt-get`, unpacks them, and writes the sounds listed in a table as mono WAV files with
16 kHz, and `metadata.jsonl` with the caption, package, path, licence and copyright of each. With `--packages DIR` the
packages are taken from folders of their names in DIR.

The default table is `sounds.csv`, which audiox-tiny was trained on. Its licences are CC0, MIT, CC-BY 3.0 and CC-BY-SA 3.0.
The last one requires derived works to have the same licence. `--table training/free_sounds/letters.csv` has 44 recordings
of one kind, the letters of the Hungarian alphabet read by a voice. Their licence is GPL 2 or later.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import audiox_diffusers
from audiox_diffusers.atomic import replacing
from audiox_diffusers.media import load_audio, save_audio

# Part of the package, because the model trained on the sounds must credit their authors.
TABLE = Path(audiox_diffusers.__file__).with_name("embedded") / "audiox-tiny" / "sounds.csv"
SAMPLING_RATE = 16000
SECONDS = 12.0  # longer sounds are cut off
PEAK = 0.8
SILENCE = 0.003  # softer samples at the start are cut off


def unpack(package: str, folder: Path) -> None:
    """Download a Debian package and unpack it into a folder of its name."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
    (file,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg", "-x", file, folder / package], check=True)


def prepare(path: Path) -> torch.Tensor:
    """Load a sound from its first audible sample on, shape `[1, samples]`, with a peak of 0.8."""
    waveform, _ = load_audio(path, SAMPLING_RATE, channels=1)
    waveform = PEAK * waveform / waveform.abs().max()
    first = int((waveform[0].abs() > SILENCE).int().argmax())
    return waveform[:, first : first + round(SECONDS * SAMPLING_RATE)]


def write_sounds(folder: Path, packages: Path, table: Path = TABLE) -> int:
    """
    Write the sounds of a table and return their number. The folder appears only when it is complete.

    Args:
        folder: Folder to write; it must not exist.
        packages: Folder with unpacked packages. Missing ones are downloaded into it.
        table: CSV file with the columns `package`, `path`, `caption`, `licence` and `copyright`.

    Raises:
        FileExistsError: If `folder` exists.
        subprocess.CalledProcessError: If a package cannot be downloaded or unpacked.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for package in sorted({row["package"] for row in rows}):
        if not (packages / package).is_dir():
            unpack(package, packages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        temporary.mkdir()
        with open(temporary / "metadata.jsonl", "w", encoding="utf-8") as metadata:
            for index, row in enumerate(rows):
                name = f"{index:05}.wav"
                save_audio(temporary / name, prepare(packages / row["package"] / row["path"]), SAMPLING_RATE)
                metadata.write(json.dumps({"file_name": name, **row}) + "\n")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--packages", type=Path, help="folder with unpacked packages")
    parser.add_argument(
        "--table", type=Path, default=TABLE, help="CSV file that lists the sounds (default: sounds.csv of audiox-tiny)"
    )
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            count = write_sounds(args.folder, args.packages or Path(temporary), args.table)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {count} sounds to {args.folder}")


if __name__ == "__main__":
    main()
