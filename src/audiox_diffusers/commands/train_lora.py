"""`audiox train-lora`"""

import argparse


def run(args: argparse.Namespace) -> int:
    from ..training import LoraTraining, main

    main(args.options, LoraTraining, prog="audiox train-lora")
    return 0
