"""
The VAE of audiox-tiny, in two halves that are trained side by side.

Its latents are given: the principal components of the sound's spectrum in bands of 100 Hz every 10 ms, on a logarithmic
scale, over the 40 ms of a frame. The encoder learns to tell them, and the decoder to make a sound of them, whatever its
phases. So neither waits for the other, and the transformer can be trained on what neither changes any more.

    python training/audiox_tiny/make_vae.py vae --dataset scenes sounds --half encoder
    python training/audiox_tiny/make_vae.py vae --dataset scenes sounds --half decoder
    python training/audiox_tiny/make_vae.py vae --dataset scenes sounds --half both --steps 500
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from audiox_diffusers.models import AudioXAutoencoderOobleck
from audiox_diffusers.training.vae import trainer as autoencoder
from audiox_diffusers.training.vae.loss import spectral_loss
from audiox_diffusers.training.vae.trainer import HELD_OUT_SEGMENTS, draw_segments, hold_out, load_sounds

CONFIG = Path(__file__).parents[1] / "configs" / "vae_16khz_mono.json"
HOP, WINDOW, BANDS = 160, 320, 80  # samples, samples, of 100 Hz
FLOOR = 1e-3  # amplitude of a sine, -60 dB
SPREAD = 0.15  # standard deviation of the posterior; latents have a mean square of 1
SEGMENT = 32  # latent frames
FITTED = 600  # segments that the components are found from


def band_levels(sound: torch.Tensor) -> torch.Tensor:
    """`[B, 1, samples]` -> `[B, 80, samples / 160]`: amplitudes at 100, 200, ... 8000 Hz, as logarithms."""
    window = torch.hann_window(WINDOW)
    padded = F.pad(sound[:, 0], (WINDOW // 4, WINDOW // 4))
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    return (spectrum[:, 2::2].abs() * (2 / window.sum()) + FLOOR).log()


def band_weights() -> torch.Tensor:
    """`[80, 1]`: how much a band counts, by its share of the mel scale; the mean square is 1."""
    weights = (1 / (1 + 100 * torch.arange(1, BANDS + 1) / 700)).sqrt()
    return (weights / weights.square().mean().sqrt())[:, None]


def as_frames(levels: torch.Tensor) -> torch.Tensor:
    """`[B, 80, 4 N]` -> `[B, N, 320]`, weighted."""
    return (levels * band_weights()).unflatten(2, (-1, 4)).transpose(1, 2).flatten(2)


def find_components(sounds: list[torch.Tensor], channels: int) -> dict[str, torch.Tensor]:
    """
    `mean` `[320]` and `projection` `[320, channels]` of the principal components. Their standard deviation goes with the
    square root of what it was, so that the first do not drown the others; the mean square of all is 1.
    """
    segments = draw_segments(sounds, SEGMENT * 4 * HOP, FITTED, 0, -2)
    frames = as_frames(band_levels(segments)).flatten(0, 1)
    mean = frames.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov((frames - mean).T))
    variances, vectors = variances.flip(0)[:channels], vectors.flip(1)[:, :channels]
    scale = variances.pow(-0.25)
    scale = scale / (variances * scale.square()).mean().sqrt()
    return {"mean": mean, "projection": (vectors * scale).contiguous()}


def latents_of(sound: torch.Tensor, components: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[B, 1, 640 N]` -> `[B, channels, N]`."""
    return ((as_frames(band_levels(sound)) - components["mean"]) @ components["projection"]).transpose(1, 2)


@torch.no_grad()
def create_vae() -> AudioXAutoencoderOobleck:
    """The VAE before training: a bank of filters, each heard at three levels, and a bank of sines 100 Hz apart."""
    vae = autoencoder.create_vae(CONFIG)
    window = torch.hann_window(WINDOW)
    sample = torch.arange(WINDOW)

    first = vae.encoder.block[0].conv1
    bands = first.out_channels // 6
    mel = torch.linspace(math.log(1 + 80 / 700), math.log(1 + 7800 / 700), bands)
    angles = 2 * math.pi * 700 * (mel.exp() - 1)[:, None] * sample / vae.config.sampling_rate
    bank = torch.cat((angles.cos(), angles.sin())) * window * (2 / window.sum())
    first.weight[: 6 * bands] = 0
    first.weight[: 6 * bands, 0] = bank.repeat(3, 1)
    first.bias.zero_()
    levels = torch.tensor([3.0, 20.0, 120.0]).log().repeat_interleave(2 * bands)
    # Snake saturates above its level: three of them tell how loud a band is on a logarithmic scale.
    vae.encoder.block[1].res_unit1.snake1.alpha[0, : 6 * bands, 0] = levels

    last = vae.decoder.block[-1].conv_t1
    frequency = 100 * torch.arange(1, BANDS + 1)[:, None]
    phase = 2 * math.pi * torch.rand(BANDS, 1)
    last.weight[:, 0] *= 0.1
    for third in range(3):
        angles = 2 * math.pi * (frequency * sample / vae.config.sampling_rate + third / 3) + phase
        last.weight[third * BANDS : (third + 1) * BANDS] = 0
        last.weight[third * BANDS : (third + 1) * BANDS, 0] = 0.3 * window * angles.cos()
    return vae


def training_loss(vae, sound, components, half: str) -> torch.Tensor:
    if half == "encoder":
        return F.mse_loss(vae.encode(sound).latent_dist.mean, latents_of(sound, components))
    if half == "decoder":
        latents = latents_of(sound, components)
    else:
        latents = vae.encode(sound).latent_dist.mean.detach()
    latents = latents + SPREAD * torch.randn_like(latents)
    # In the end what is softer than the components can tell is to be as soft as it mostly is.
    return spectral_loss(vae.decode(latents).sample, sound, floor=FLOOR / 10 if half == "both" else FLOOR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("output", type=Path, help="folder of the VAE")
    parser.add_argument("--dataset", nargs="+", required=True, help="as of train_vae.py")
    parser.add_argument("--half", choices=("encoder", "decoder", "both"), required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = create_vae()
    sounds, _ = load_sounds(args.dataset, vae.config.sampling_rate, vae.config.audio_channels)
    sounds, held_out = hold_out(sounds)
    components = find_components(sounds, vae.config.decoder_input_channels)
    test = draw_segments(held_out, SEGMENT * vae.hop_length, HELD_OUT_SEGMENTS, 0, -1)

    args.output.mkdir(parents=True, exist_ok=True)
    network = vae.encoder if args.half == "encoder" else vae.decoder
    # Through the saturated snakes of the bank of filters gradients would explode: it stays as it is.
    for frozen in (vae.encoder.conv1, vae.encoder.block[0], vae.encoder.block[1].res_unit1.snake1):
        frozen.requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.8, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.05, cycle_momentum=False
    )
    if args.half == "both":
        for half in ("encoder", "decoder"):
            getattr(vae, half).load_state_dict(load_file(args.output / f"{half}.safetensors"))
    started = time.perf_counter()
    for step in range(1, args.steps + 1):
        sound = draw_segments(sounds, SEGMENT * vae.hop_length, args.batch_size, 0, step)
        loss = training_loss(vae, sound, components, args.half)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        line = {"half": args.half, "step": step, "loss": loss.item(), "grad_norm": norm.item()}
        if step % 250 == 0 or step == args.steps:
            with torch.no_grad():
                line["held_out"] = training_loss(vae, test, components, args.half).item()
            save_file(network.state_dict(), args.output / f"{args.half}.safetensors")
        line["seconds"] = time.perf_counter() - started
        with (args.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if args.half == "both":
        half = vae.config.decoder_input_channels
        with torch.no_grad():
            vae.encoder.conv2.weight[half:] = 0
            vae.encoder.conv2.bias[half:] = math.log(math.expm1(SPREAD))
        vae.save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()
