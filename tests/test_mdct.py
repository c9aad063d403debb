import math

import pytest
import torch
import torch.nn.functional as F
from helpers import normal, refused

from audiox_diffusers import AudioXAutoencoderOobleck
from audiox_diffusers.mdct import initialize_with_mdct, mdct_basis

CONFIG = {
    "encoder_hidden_size": 2,
    "downsampling_ratios": [32, 4],
    "channel_multiples": [32, 16],
    "decoder_channels": 2,
    "decoder_input_channels": 4,
    "audio_channels": 1,
    "sampling_rate": 8000,
}
MONO_AND_STEREO = pytest.mark.parametrize("channels", [1, 2])


def create_vae(channels: int = 1, **config: object) -> AudioXAutoencoderOobleck:
    torch.manual_seed(0)
    vae = AudioXAutoencoderOobleck(**{**CONFIG, "audio_channels": channels, **config})
    initialize_with_mdct(vae)
    return vae


def bands_of(vae: AudioXAutoencoderOobleck, sound: torch.Tensor) -> torch.Tensor:
    """Return the bands among the output channels of the encoder's first block."""
    return vae.encoder.block[0](vae.encoder.conv1(sound))[:, : 32 * sound.shape[1]]


def sound_of(vae: AudioXAutoencoderOobleck, bands: torch.Tensor) -> torch.Tensor:
    """Apply the decoder's last block to bands, with zeros in its other channels."""
    block = vae.decoder.block[-1]
    silent = block.conv_t1.in_channels - bands.shape[1]
    return vae.decoder.conv2(vae.decoder.snake1(block(F.pad(bands, (0, 0, 0, silent)))))


def mdct(sound: torch.Tensor, bands: int) -> torch.Tensor:
    """`[channels, samples]` -> `[channels * bands, frames]`, from the formula of Princen, Johnson and Bradley."""
    frames = F.pad(sound.double(), (bands // 2, bands // 2)).unfold(-1, 2 * bands, bands)
    n, k = torch.arange(2 * bands).double(), torch.arange(bands).double()
    window = torch.sin(math.pi * (n + 0.5) / (2 * bands))
    phases = math.pi / bands * (n[:, None] + 0.5 + bands / 2) * (k + 0.5)
    spectra = (frames * window) @ torch.cos(phases) * math.sqrt(2 / bands)
    return spectra.transpose(1, 2).flatten(0, 1).float()


def noise(level: float, channels: int) -> torch.Tensor:
    return level * normal(1, channels, 2048, seed=1)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    assert actual.shape == expected.shape
    assert ((actual - expected).norm() / expected.norm()).item() < share


def test_basis_reconstructs_the_sound():
    bands = 8
    basis = mdct_basis(bands).double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(bands).double(), rtol=0, atol=5e-6)
    sound = normal(10 * bands).double()
    rebuilt = torch.zeros_like(sound)
    for start in range(0, len(sound) - bands, bands):
        frame = slice(start, start + 2 * bands)
        rebuilt[frame] += (sound[frame] @ basis.T) @ basis
    torch.testing.assert_close(rebuilt[bands:-bands], sound[bands:-bands], rtol=0, atol=1e-5)


@MONO_AND_STEREO
@torch.no_grad()
def test_first_block_is_the_mdct(channels):
    """Within 1 %, apart from a constant offset."""
    vae, sound = create_vae(channels), noise(0.1, channels)
    offset = bands_of(vae, torch.zeros_like(sound))
    assert_near(bands_of(vae, sound) - offset, mdct(sound[0], 32)[None], 0.01)


@MONO_AND_STEREO
@torch.no_grad()
def test_last_block_is_the_inverse(channels):
    """Within 1 % for soft sounds, for which Snake is linear, apart from a constant offset."""
    vae, sound = create_vae(channels), noise(0.003, channels)
    bands = mdct(sound[0], 32)[None]
    found = sound_of(vae, bands) - sound_of(vae, torch.zeros_like(bands))
    inside = slice(16, -16)
    assert_near(found[..., inside], sound[..., inside], 0.01)


@torch.no_grad()
def test_snake_changes_loud_bands_before_the_inverse():
    vae, loud = create_vae(), mdct(noise(0.3, 1)[0], 32)[None]
    offset = sound_of(vae, torch.zeros_like(loud))
    changed = loud + loud.sin().square()
    expected = F.conv_transpose1d(changed, mdct_basis(32)[:, None], stride=32, padding=16)
    assert_near(sound_of(vae, loud) - offset, expected, 0.01)


@MONO_AND_STEREO
@torch.no_grad()
def test_silence_stays_silent(channels):
    """The offset of the residual units is below -40 dB of full scale, in encoder and decoder."""
    for seed in range(5):
        torch.manual_seed(seed)
        vae = AudioXAutoencoderOobleck(**{**CONFIG, "audio_channels": channels})
        initialize_with_mdct(vae)
        bands = bands_of(vae, torch.zeros(1, channels, 2048))
        basis = mdct_basis(32)[:, None].repeat(channels, 1, 1)
        sound = F.conv_transpose1d(bands, basis, stride=32, padding=16, groups=channels)
        assert sound.abs().max() < 0.01
        assert sound_of(vae, torch.zeros_like(bands)).abs().max() < 0.01


@torch.no_grad()
def test_channels_stay_separate():
    vae, sound = create_vae(2), noise(0.1, 2)
    sound[:, 1] = 0
    bands = bands_of(vae, sound) - bands_of(vae, torch.zeros_like(sound))
    assert bands[:, 32:].norm() < 0.01 * bands[:, :32].norm()


def test_unsuitable_vaes_are_refused():
    with refused("1 audio channels with the first ratio 32 needs 32 ", "the VAE has 30"):
        create_vae(channel_multiples=[15, 16])
    with refused("2 audio channels with the first ratio 32 needs 64 ", "the VAE has 32"):
        create_vae(2, channel_multiples=[16, 16])
    with refused("as wide as the 2 audio channels, the VAE has 1"):
        create_vae(2, encoder_hidden_size=1, channel_multiples=[64, 16])
    with refused("plain weights"):
        create_vae(use_weight_norm=True)
