import math

import pytest
import torch

from audiox_diffusers.training.vae.loss import spectral_loss


def test_spectral_loss_of_known_sounds():
    sound = 0.5 * torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(0))
    assert spectral_loss(sound, sound) == 0
    # Phases do not count, levels do: half of the magnitude is missing, and ln 2 of its logarithm.
    assert spectral_loss(-sound, sound) < 1e-6
    assert spectral_loss(sound / 2, sound).item() == pytest.approx(0.5 + math.log(2), rel=0.05)
    # What is far below -60 dB is no more than silence.
    assert spectral_loss(1e-6 * sound, torch.zeros_like(sound)).item() < 0.1
