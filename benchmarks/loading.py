"""
How long `from_pretrained` takes, and what memory: of AudioX at its released size, with random weights.

    python benchmarks/loading.py [--folder FOLDER]

The pipeline is saved once in float32 and once in bfloat16, 5.8 and 3 GB, in a temporary folder or a given one. Each row
is a process of its own that loads it and touches every weight. Private memory is what the process holds alone; pages of
the mapped files, which the system can drop, are not in it. The files are in the system's cache, as after a first run:
the disk is not measured.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from clip_parts import create_full_pipeline
from process_memory import process_gigabytes

from audiox_diffusers import AudioXPipeline

# The dtype in the files, and the one asked for.
ROWS = (("float32", None), ("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))


@torch.no_grad()
def load(folder: Path, dtype: str | None) -> None:
    """Print seconds, private memory after it, and the peak of resident memory, in GB above that of the imports."""
    before, peak_before = process_gigabytes("RssAnon"), process_gigabytes("VmHWM")
    started = time.perf_counter()
    pipe = AudioXPipeline.from_pretrained(folder, dtype=None if dtype is None else getattr(torch, dtype))
    seconds = time.perf_counter() - started
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for weight in component.parameters():
                weight.sum()
    print(seconds, process_gigabytes("RssAnon") - before, process_gigabytes("VmHWM") - peak_before)


def save(folder: Path) -> None:
    pipe = create_full_pipeline()
    pipe.save_pretrained(folder / "float32")
    pipe.to(torch.bfloat16).save_pretrained(folder / "bfloat16")


def report(folder: Path) -> None:
    print("| files | GB | dtype asked for | seconds | private memory, GB | peak, GB |\n|---|---|---|---|---|---|")
    for saved, dtype in ROWS:
        size = sum(path.stat().st_size for path in (folder / saved).rglob("*.safetensors")) / 1e9
        command = [sys.executable, __file__, "--folder", str(folder / saved), "--load", dtype or "none"]
        numbers = subprocess.check_output(command, text=True).split()[-3:]
        cells = " | ".join(f"{float(number):.1f}" for number in numbers)
        print(f"| {saved} | {size:.1f} | {dtype or ''} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to save the pipelines, or where they are already")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.folder, None if args.load == "none" else args.load)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "bfloat16").exists():
            save(folder)
        report(folder)


if __name__ == "__main__":
    main()
