"""Distill AudioX into a few-step model: `accelerate launch training/distill_audiox.py --help`."""

from audiox_diffusers.training import DistillTraining, main

if __name__ == "__main__":
    main(method=DistillTraining)
