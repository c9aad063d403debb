import math

import pytest
import torch

from audiox_diffusers import AudioXTransformer2DModel
from audiox_diffusers.testing import CONDITION_DIM, HOP_LENGTH, NUM_FRAMES, create_small_pipeline

# Correlation between neighbouring latent frames of the Gaussian model.
CORRELATION = 0.9


class GaussianTransformer(AudioXTransformer2DModel):
    """
    The perfect model of latents whose channels are independent Gaussian processes with variance 1 and the correlation
    `CORRELATION ** distance` between frames: it predicts `E[x0 | x_t] = K (K + s^2)^-1 x`, as a velocity.
    """

    def forward(self, hidden_states, timestep, encoder_hidden_states, attention_kwargs=None, return_dict=True):
        frames = torch.arange(hidden_states.shape[-1], dtype=torch.float64)
        covariance = CORRELATION ** (frames[:, None] - frames).abs()
        sigma = math.tan(timestep[0].double().item() * math.pi / 2)
        sample = hidden_states.double() * math.sqrt(sigma**2 + 1)
        denoised = sample @ torch.linalg.solve(covariance + sigma**2 * torch.eye(len(frames)), covariance)
        velocity = (sample / (sigma**2 + 1) - denoised) * (math.sqrt(sigma**2 + 1) / sigma)
        return (velocity.to(hidden_states.dtype),)


@pytest.fixture(scope="session")
def gaussian_pipe():
    """Return the small pipeline with the Gaussian model: windows of 2 s, 125 frames, 8 kHz."""
    pipe = create_small_pipeline()
    pipe.transformer = GaussianTransformer(
        sample_size=NUM_FRAMES,
        in_channels=HOP_LENGTH,
        num_layers=1,
        attention_head_dim=32,
        num_attention_heads=1,
        num_key_value_attention_heads=1,
        cross_attention_input_dim=CONDITION_DIM,
        cross_attention_dim=CONDITION_DIM,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
