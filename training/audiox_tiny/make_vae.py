"""
Train the VAE of audiox-tiny: encoder and decoder apart, then the decoder on the encoder's latents.

The latents are defined before training. They are the principal components of the log spectrum in bands of 100 Hz, taken
every 10 ms over the 40 ms of a latent frame. The encoder learns to compute them. The decoder learns to synthesize audio
from them, with any phases. So both halves can be trained at the same time:

    python training/audiox_tiny/make_vae.py vae --dataset scenes sounds --half encoder
    python training/audiox_tiny/make_vae.py vae --dataset scenes sounds --half decoder
    python training/audiox_tiny/make_vae.py vae --dataset scenes sounds --half both --steps 500
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from audiox_diffusers.models import AudioXAutoencoderOobleck
from audiox_diffusers.training.vae import trainer
from audiox_diffusers.training.vae.loss import spectral_loss
from audiox_diffusers.training.vae.segments import draw_segments

CONFIG = Path(__file__).parents[1] / "configs" / "vae_16khz_mono.json"
HOP, WINDOW, BANDS = 160, 320, 80  # samples, samples, of 100 Hz
FLOOR = 1e-3  # amplitude of a sine, -60 dB
SPREAD = 0.15  # standard deviation of the posterior; latents have a mean square of 1
SEGMENT = 32  # latent frames
FITTED = 600  # segments to compute the components from


def band_levels(sound: torch.Tensor) -> torch.Tensor:
    """Compute log amplitudes at 100, 200, ... 8000 Hz: `[B, 1, samples]` -> `[B, 80, samples / 160]`."""
    window = torch.hann_window(WINDOW)
    padded = F.pad(sound[:, 0], (WINDOW // 4, WINDOW // 4))
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    return (spectrum[:, 2::2].abs() * (2 / window.sum()) + FLOOR).log()


def band_weights() -> torch.Tensor:
    """Return weights of the bands by their share of the mel scale, `[80, 1]`, with mean square 1."""
    weights = (1 / (1 + 100 * torch.arange(1, BANDS + 1) / 700)).sqrt()
    return (weights / weights.square().mean().sqrt())[:, None]


def as_frames(levels: torch.Tensor) -> torch.Tensor:
    """Weight levels and group them into latent frames: `[B, 80, 4 N]` -> `[B, N, 320]`."""
    return (levels * band_weights()).unflatten(2, (-1, 4)).transpose(1, 2).flatten(2)


def find_components(sounds: list[torch.Tensor], channels: int) -> dict[str, torch.Tensor]:
    """
    Compute the principal components, scaled so that the first do not dominate: each standard deviation becomes its
    square root, and the mean square of all is 1.

    Returns:
        `mean` `[320]` and `projection` `[320, channels]`.
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
    """Compute the latents: `[B, 1, 640 N]` -> `[B, channels, N]`."""
    return ((as_frames(band_levels(sound)) - components["mean"]) @ components["projection"]).transpose(1, 2)


@torch.no_grad()
def create_vae() -> AudioXAutoencoderOobleck:
    """Initialize the encoder with band filters at three levels each, and the decoder with sines 100 Hz apart."""
    vae = trainer.create_vae(CONFIG)
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
    # Snake saturates above its level. Three levels give the loudness of a band on a logarithmic scale.
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


class HalfLoss(torch.nn.Module):
    """
    Loss of one half of the VAE. The other half is frozen.

    Args:
        vae: VAE to train.
        components: Principal components, see [`find_components`].
        half: `"encoder"`, `"decoder"`, or `"both"` for the decoder on the encoder's latents.
    """

    def __init__(self, vae: AudioXAutoencoderOobleck, components: dict[str, torch.Tensor], half: str):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.components = components
        self.half = half
        (vae.encoder if half == "encoder" else vae.decoder).requires_grad_(True)
        # Gradients explode in the saturated snakes after the band filters, so these layers stay frozen.
        for frozen in (vae.encoder.conv1, vae.encoder.block[0], vae.encoder.block[1].res_unit1.snake1):
            frozen.requires_grad_(False)

    def forward(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.half == "encoder":
            found = self.vae.encode(waveform).latent_dist.mean
            return {"loss": F.mse_loss(found, latents_of(waveform, self.components))}
        if self.half == "decoder":
            latents = latents_of(waveform, self.components)
        else:
            latents = self.vae.encode(waveform).latent_dist.mean
        latents = latents + SPREAD * torch.randn_like(latents)
        # The components do not resolve levels below their floor. The last stage learns those too.
        floor = FLOOR / 10 if self.half == "both" else FLOOR
        return {"loss": spectral_loss(self.vae.decode(latents).sample, waveform, floor=floor)}


class HalfTrainer(trainer.VaeTrainer):
    """Train a half of the VAE. `"both"` starts from the two halves, which must be trained already."""

    def __init__(self, args: trainer.VaeArguments, half: str):
        self.half = half
        super().__init__(args)

    def create_vae(self) -> AudioXAutoencoderOobleck:
        vae = create_vae()
        if self.half == "both":
            for name in ("encoder", "decoder"):
                trained = AudioXAutoencoderOobleck.from_pretrained(self.args.output_dir.parent / name / "vae")
                getattr(vae, name).load_state_dict(getattr(trained, name).state_dict())
        return vae

    def build_loss(self) -> torch.nn.Module:
        return HalfLoss(self.vae, find_components(self.recordings, self.vae.config.decoder_input_channels), self.half)

    def held_out_loss(self, segments: torch.Tensor) -> torch.Tensor:
        return self.model(segments)["loss"]

    def export(self, folder: Path) -> None:
        if self.half == "both":
            channels = self.vae.config.decoder_input_channels
            with torch.no_grad():
                self.vae.encoder.conv2.weight[channels:] = 0
                self.vae.encoder.conv2.bias[channels:] = math.log(math.expm1(SPREAD))
        super().export(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("output", type=Path, help="folder of the runs, one for each --half")
    parser.add_argument("--dataset", nargs="+", required=True, help="as for train_vae.py")
    parser.add_argument("--half", choices=("encoder", "decoder", "both"), required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    options = trainer.VaeArguments(
        vae_config=CONFIG,
        dataset=args.dataset,
        output_dir=args.output / args.half,
        segment_frames=SEGMENT,
        train_batch_size=args.batch_size,
        max_train_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_warmup_steps=args.steps // 20,
    )
    HalfTrainer(options, args.half).train()


if __name__ == "__main__":
    main()
