"""Train a LoRA adapter for AudioX: `accelerate launch training/train_audiox_lora.py --help`."""

from audiox_diffusers.training import LoraTraining, main

if __name__ == "__main__":
    main(method=LoraTraining)
