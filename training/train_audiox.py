"""Train AudioX on all its tasks: `accelerate launch training/train_audiox.py --help`."""

from audiox_diffusers.training import main

if __name__ == "__main__":
    main()
