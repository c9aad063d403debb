"""
Measure time and memory of `from_pretrained` for AudioX at its released size, with random weights.

    python benchmarks/loading.py [--folder FOLDER]

The pipeline is saved in float32 and in bfloat16 (5.8 and 3 GB). For each row of the table a new process loads it and reads
every weight. Private memory excludes pages of mapped files, which the system can drop. The files are in the system's cache,
so the speed of the disk does not matter.
"""

import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path

import torch
from clip_parts import create_full_pipeline
from common import create_parser, process_gigabytes, run_process

from audiox_diffusers import AudioXPipeline

# The dtype of the files, and the `dtype` argument.
ROWS = (("float32", None), ("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))


@torch.no_grad()
def load(folder: Path, dtype: str | None) -> None:
    """Print the seconds, and the private and peak memory in GB in addition to that of the imports."""
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
    print("| files | GB | `dtype` | seconds | private memory, GB | peak, GB |\n|---|---|---|---|---|---|")
    for saved, dtype in ROWS:
        size = sum(path.stat().st_size for path in (folder / saved).rglob("*.safetensors")) / 1e9
        numbers = run_process("--folder", folder / saved, "--load", dtype or "none")
        cells = " | ".join(f"{number:.1f}" for number in numbers)
        print(f"| {saved} | {size:.1f} | {dtype or ''} | {cells} |", flush=True)


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--folder", type=Path, help="folder for the pipelines, reused if it has them (default: a temporary one)"
    )
    parser.add_argument("--load", help=SUPPRESS)
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
