"""`audiox distill`"""

import argparse


def run(args: argparse.Namespace) -> int:
    from ..training import DistillTraining, main

    main(args.options, DistillTraining, prog="audiox distill")
    return 0
