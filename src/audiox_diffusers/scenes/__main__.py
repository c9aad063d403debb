"""`python -m audiox_diffusers.scenes FOLDER`: write random scenes."""

import argparse
import sys

from .._imports import exit_quickly
from ..interruption import run_interruptible
from ..messages import describe
from ..option_types import MAX_SEED, real, whole


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0, or 2 for wrong input, with a line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m audiox_diffusers.scenes",
        description="Write random scenes as a dataset folder: videos with sound and captions.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder to write; it must be empty or not exist")
    parser.add_argument(
        "--count", type=whole(1, 1_000_000), default=24, metavar="N", help="number of scenes (default: 24)"
    )
    parser.add_argument("--seconds", type=real(0.5, 3600), default=4.0, help="length of each scene (default: 4)")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, metavar="S", help="random seed (default: 0)")
    parser.add_argument(
        "--sounds",
        metavar="FOLDER",
        help="recordings that replace synthesised sounds: bell.wav, or files in a folder bell, for each class",
    )
    args = parser.parse_args(argv)
    from .write import write_scenes  # slow to import

    try:
        folder = write_scenes(args.folder, args.count, args.seed, args.seconds, sounds=args.sounds)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {describe(error)}", file=sys.stderr)
        return 2
    print(f"wrote {args.count} scenes to {folder}")
    return 0


if __name__ == "__main__":
    exit_quickly()
    sys.exit(run_interruptible(main))
