"""`audiox generate`."""

from argparse import Namespace

from . import batch
from .once import read_request, run_once
from .quiet import quiet_libraries
from .sounds import Settings, make


def run(args: Namespace) -> int:
    """`audiox generate`; the exit status."""
    with quiet_libraries():
        if args.batch is not None:
            return batch.run(args)
        if args.batch_size is not None:
            raise ValueError("--batch-size goes with --batch only")
        return run_once(args, read_request(args), Settings.from_args(args), make)
