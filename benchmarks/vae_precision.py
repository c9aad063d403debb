"""
Measure accuracy and speed of the VAE in half precision, compared with float32.

    python benchmarks/vae_precision.py [--only audiox-tiny|audiox]

audiox-tiny encodes sounds of rendered scenes and decodes their latents. AudioX at its released size, with random weights,
encodes white noise and decodes random latents. The signal-to-noise ratio (SNR) is the power of the float32 result relative
to that of the difference, in dB, over all clips. The peak ratio is the largest value relative to the largest difference.
"""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from common import create_parser, hardware
from model_sizes import components

from audiox_diffusers import AudioXAutoencoderOobleck, AudioXPipeline
from audiox_diffusers.scenes import random_scene

SCENES = 6
FRAMES = 6  # latent frames for the full-size VAE
ROUNDS = 3
DTYPES = (torch.bfloat16, torch.float16)


def tiny() -> tuple[AudioXAutoencoderOobleck, torch.Tensor]:
    vae = AudioXPipeline.from_pretrained("audiox-tiny").vae
    sounds = [random_scene(number).audio(vae.config.sampling_rate) for number in range(SCENES)]
    return vae, torch.as_tensor(np.stack(sounds))


def full() -> tuple[AudioXAutoencoderOobleck, torch.Tensor]:
    torch.manual_seed(0)
    vae = components("audiox", "cpu")["vae"].eval()
    return vae, 0.1 * torch.randn(1, 2, FRAMES * vae.hop_length)


def snr(found: torch.Tensor, expected: torch.Tensor) -> float:
    return 10 * torch.log10(expected.square().sum() / (found.float() - expected).square().sum()).item()


def peak(found: torch.Tensor, expected: torch.Tensor) -> float:
    return 20 * torch.log10(expected.abs().max() / (found.float() - expected).abs().max()).item()


def timed(run: Callable, *args) -> tuple[float, torch.Tensor]:
    started = time.perf_counter()
    result = run(*args)
    return time.perf_counter() - started, result


def encode(vae: AudioXAutoencoderOobleck, sounds: torch.Tensor) -> torch.Tensor:
    return vae.encode(sounds.to(vae.encoder.conv1.weight.dtype)).latent_dist.mode()


def decode(vae: AudioXAutoencoderOobleck, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents).sample


@torch.no_grad()
def measure(name: str, vae: AudioXAutoencoderOobleck, sounds: torch.Tensor) -> None:
    latents = encode(vae, sounds)
    if name == "audiox":
        latents = torch.randn_like(latents)
    for dtype in DTYPES:
        half = copy.deepcopy(vae)
        half.encoder.to(dtype), half.decoder.to(dtype)
        for run, values in ((encode, sounds), (decode, latents)):
            rounds = [(timed(run, vae, values), timed(run, half, values)) for _ in range(ROUNDS)]
            (before, expected), (after, found) = (min(side, key=lambda pair: pair[0]) for side in zip(*rounds))
            print(
                f"| {name} | {run.__name__} | {str(dtype).removeprefix('torch.')} | {snr(found, expected):.0f} |"
                f" {peak(found, expected):.0f} | {before / after:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--only", choices=("audiox-tiny", "audiox"), help="measure one VAE (default: both)")
    args = parser.parse_args()
    print(f"{hardware()}\n")
    print("| VAE | part | dtype | SNR, dB | peak, dB | speed |\n|---|---|---|---|---|---|")
    for name, create in (("audiox-tiny", tiny), ("audiox", full)):
        if args.only in (None, name):
            measure(name, *create())


if __name__ == "__main__":
    main()
