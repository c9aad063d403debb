"""
Free sounds to train on, with captions, as a folder that `datasets` loads.

`python training/free_sounds/make_sounds.py sounds` downloads three Debian packages with `apt-get`, unpacks them, and
writes each sound that `sounds.csv` lists as a mono WAV file of 16 kHz, and `metadata.jsonl` with its caption, package,
path, licence and copyright. With `--packages DIR` the packages lie there, unpacked into folders of their names.

All licences are those of the packages: CC0, MIT, CC-BY 3.0 and CC-BY-SA 3.0. The last one asks that what is made of the
sounds be shared alike.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import torch

import audiox_diffusers
from audiox_diffusers.media import load_audio, save_audio

# Part of the package, since the model that is made of the sounds owes their authors to be named.
TABLE = Path(audiox_diffusers.__file__).with_name("embedded") / "audiox-tiny" / "sounds.csv"
SAMPLING_RATE = 16000
SECONDS = 12.0  # of a longer sound the beginning is kept
PEAK = 0.8
SILENCE = 0.003  # what is softer, before the sound begins, is cut off


def unpack(package: str, folder: Path) -> None:
    """Download a Debian package, and unpack it into a folder of its name."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
    (file,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg", "-x", file, folder / package], check=True)


def prepare(path: Path) -> torch.Tensor:
    """The sound from its first audible moment on, `[1, samples]`, with a peak of 0.8."""
    waveform, _ = load_audio(path, SAMPLING_RATE, channels=1)
    waveform = PEAK * waveform / waveform.abs().max()
    first = int((waveform[0].abs() > SILENCE).int().argmax())
    return waveform[:, first : first + round(SECONDS * SAMPLING_RATE)]


def write_sounds(folder: Path, packages: Path, table: Path = TABLE) -> int:
    """
    Write the sounds of a table, and tell how many there are. The folder appears only when it is complete.

    Args:
        folder: where to write; it must not exist.
        packages: folder with unpacked packages; those that are missing are downloaded into it.
        table: CSV with the columns `package`, `path`, `caption`, `licence` and `copyright`.

    Raises:
        FileExistsError: there is something at `folder`.
        subprocess.CalledProcessError: a package cannot be downloaded or unpacked.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for package in sorted({row["package"] for row in rows}):
        if not (packages / package).is_dir():
            unpack(package, packages)
    temporary = folder.with_name(f".{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        with open(temporary / "metadata.jsonl", "w", encoding="utf-8") as metadata:
            for index, row in enumerate(rows):
                name = f"{index:05}.wav"
                save_audio(temporary / name, prepare(packages / row["package"] / row["path"]), SAMPLING_RATE)
                metadata.write(json.dumps({"file_name": name, **row}) + "\n")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return len(rows)


def main() -> None:
    """What is wrong is told in a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--packages", type=Path, help="folder with unpacked packages")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            count = write_sounds(args.folder, args.packages or Path(temporary))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {count} sounds to {args.folder}")


if __name__ == "__main__":
    main()
