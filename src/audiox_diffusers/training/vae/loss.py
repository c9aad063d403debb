"""Loss of the VAE."""

import torch
import torch.nn.functional as F

from ...models import AudioXAutoencoderOobleck

WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples
LONGEST_WINDOW = max(WINDOWS)


class VaeLoss(torch.nn.Module):
    """
    Encode, sample, decode and compare.

    Args:
        vae: VAE to train.
        kl_weight: Weight of the Kullback-Leibler divergence of the posterior from a standard normal distribution, as
            computed by diffusers' `OobleckDiagonalGaussianDistribution.kl`.
        l1_weight: Weight of the mean absolute difference of the waveforms.
    """

    def __init__(self, vae: AudioXAutoencoderOobleck, kl_weight: float, l1_weight: float):
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight
        self.l1_weight = l1_weight

    def forward(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            waveform (`torch.Tensor` of shape `[B, channels, samples]`): Audio with a multiple of the VAE's hop length.

        Returns:
            The `loss` and its parts `spectral`, `l1` and `kl`, all scalars.
        """
        posterior = self.vae.encode(waveform).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample.float()
        report = {
            "spectral": spectral_loss(reconstruction, waveform),
            "l1": F.l1_loss(reconstruction, waveform),
            "kl": posterior.kl(),
        }
        loss = report["spectral"] + self.l1_weight * report["l1"] + self.kl_weight * report["kl"]
        return {"loss": loss, **report}


def spectral_loss(reconstruction: torch.Tensor, target: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    """
    Compute the multi-resolution STFT loss (Yamamoto, Song and Kim, "Parallel WaveGAN", 2020, eq. 4-6).

    It is the spectral convergence of the batch plus the mean absolute difference of log magnitudes, averaged over Hann
    windows of 64 to 2048 samples with 75 % overlap. A sine has its amplitude as magnitude. Phases do not count.

    Args:
        reconstruction, target (`torch.Tensor` of shape `[..., samples]`): Audio, longer than 1024 samples.
        floor (`float`): Added to magnitudes before the logarithm, so that quieter parts count little. The default is
            -60 dB of full scale.

    Returns:
        A scalar, 0 for equal spectra.
    """
    # bfloat16 is too coarse for small differences of spectra.
    reconstruction, target = (waveform.flatten(0, -2).float() for waveform in (reconstruction, target))
    return torch.stack([_at_resolution(reconstruction, target, size, floor) for size in WINDOWS]).mean()


def _at_resolution(reconstruction: torch.Tensor, target: torch.Tensor, size: int, floor: float) -> torch.Tensor:
    found, true = _magnitudes(reconstruction, size), _magnitudes(target, size)
    convergence = torch.linalg.vector_norm(true - found) / torch.linalg.vector_norm(true + floor)
    return convergence + ((true + floor).log() - (found + floor).log()).abs().mean()


def _magnitudes(waveform: torch.Tensor, size: int) -> torch.Tensor:
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True)
    # The gradient of a magnitude is not defined at 0.
    power = spectrum.real.square() + spectrum.imag.square()
    return (power + 1e-9).sqrt() * (2 / window.sum())
