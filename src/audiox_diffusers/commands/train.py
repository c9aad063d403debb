"""`audiox train`"""

import argparse


def run(args: argparse.Namespace) -> int:
    from ..training import main

    main(args.options, prog="audiox train")
    return 0
