"""
What the VAE loses in half precision, and the time it takes: signal-to-noise ratio against float32.

    python benchmarks/vae_precision.py [--only audiox-tiny|audiox]

For audiox-tiny sounds of rendered scenes are encoded, and their latents decoded; for AudioX at its released size, whose
weights are random here, white noise and unit latents of a second are. The ratio is that of the powers of the float32
result and of the difference, in dB, over all clips; the peak's is the largest difference below the largest value.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from model_sizes import components

from audiox_diffusers import AudioXAutoencoderOobleck, AudioXPipeline
from audiox_diffusers.scenes import random_scene

SCENES = 6
DTYPES = (torch.bfloat16, torch.float16)


def tiny() -> tuple[AudioXAutoencoderOobleck, torch.Tensor]:
    vae = AudioXPipeline.from_pretrained("audiox-tiny").vae
    sounds = [random_scene(number).audio(vae.config.sampling_rate) for number in range(SCENES)]
    return vae, torch.as_tensor(np.stack(sounds))


def full() -> tuple[AudioXAutoencoderOobleck, torch.Tensor]:
    torch.manual_seed(0)
    vae = components("audiox", "cpu")["vae"].eval()
    return vae, 0.1 * torch.randn(1, 2, 22 * vae.hop_length)


def snr(found: torch.Tensor, expected: torch.Tensor) -> float:
    return 10 * torch.log10(expected.square().sum() / (found.float() - expected).square().sum()).item()


def peak(found: torch.Tensor, expected: torch.Tensor) -> float:
    return 20 * torch.log10(expected.abs().max() / (found.float() - expected).abs().max()).item()


@torch.no_grad()
def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    run()
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


@torch.no_grad()
def measure(name: str, vae: AudioXAutoencoderOobleck, sounds: torch.Tensor) -> None:
    latents = vae.encode(sounds).latent_dist.mode()
    if name == "audiox":
        latents = torch.randn_like(latents)
    parts = {
        "encode": lambda: vae.encode(sounds.to(vae.encoder.conv1.weight.dtype)).latent_dist.mode(),
        "decode": lambda: vae.decode(latents).sample,
    }
    expected = {part: timed(run) for part, run in parts.items()}
    for dtype in DTYPES:
        vae.encoder.to(dtype), vae.decoder.to(dtype)
        for part, run in parts.items():
            seconds, found = timed(run)
            before, wanted = expected[part]
            print(
                f"| {name} | {part} | {str(dtype).removeprefix('torch.')} | {snr(found, wanted):.0f} |"
                f" {peak(found, wanted):.0f} | {before / seconds:.2f} |",
                flush=True,
            )
        vae.encoder.float(), vae.decoder.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("audiox-tiny", "audiox"))
    args = parser.parse_args()
    print(f"CPU, {torch.get_num_threads()} threads\n")
    print("| VAE | part | dtype | SNR, dB | peak, dB | speed |\n|---|---|---|---|---|---|")
    for name, create in (("audiox-tiny", tiny), ("audiox", full)):
        if args.only in (None, name):
            measure(name, *create())


if __name__ == "__main__":
    main()
