"""`audiox reconstruct-ema`"""

import argparse


def run(args: argparse.Namespace) -> int:
    from ..training.reconstruct import main

    main(args.options, prog="audiox reconstruct-ema")
    return 0
