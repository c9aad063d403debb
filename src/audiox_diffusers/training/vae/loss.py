"""How far a reconstructed sound is from the true one, as spectra of several resolutions see it."""

import torch

WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples
LONGEST_WINDOW = max(WINDOWS)


def spectral_loss(reconstruction: torch.Tensor, target: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    """
    The multi-resolution STFT loss (Yamamoto, Song and Kim, "Parallel WaveGAN", 2020, eq. 4-6): the spectral convergence
    plus the mean absolute difference of log magnitudes, as a mean over Hann windows of 64 to 2048 samples that overlap by
    three quarters; the convergence is that of the whole batch. Magnitudes are those of a sine's amplitude. Phases do not
    count.

    Args:
        reconstruction, target: `[..., samples]`, longer than 1024.
        floor: is added to magnitudes before the logarithm: what is softer counts little. By default -60 dB of full scale.

    Returns:
        A scalar, 0 for equal spectra.
    """
    # What an STFT makes of bfloat16 is too coarse for small differences.
    reconstruction, target = (sound.flatten(0, -2).float() for sound in (reconstruction, target))
    return torch.stack([_at_resolution(reconstruction, target, size, floor) for size in WINDOWS]).mean()


def _at_resolution(reconstruction: torch.Tensor, target: torch.Tensor, size: int, floor: float) -> torch.Tensor:
    found, true = _magnitudes(reconstruction, size), _magnitudes(target, size)
    convergence = torch.linalg.vector_norm(true - found) / torch.linalg.vector_norm(true + floor)
    return convergence + ((true + floor).log() - (found + floor).log()).abs().mean()


def _magnitudes(sound: torch.Tensor, size: int) -> torch.Tensor:
    window = torch.hann_window(size, device=sound.device)
    spectrum = torch.stft(sound, size, size // 4, window=window, return_complex=True)
    # The gradient of a magnitude is not defined at 0.
    power = spectrum.real.square() + spectrum.imag.square()
    return (power + 1e-9).sqrt() * (2 / window.sum())
