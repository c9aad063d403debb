"""Train a VAE on sounds: `accelerate launch training/train_vae.py --help`."""

from audiox_diffusers.training.vae.trainer import main

if __name__ == "__main__":
    main()
