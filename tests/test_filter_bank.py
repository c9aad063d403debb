import math

import pytest
import torch
import torch.nn.functional as F

from audiox_diffusers import AudioXAutoencoderOobleck
from audiox_diffusers.filter_bank import cosine_bank, start_from_filter_bank

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


def started(channels: int = 1, **config: object) -> AudioXAutoencoderOobleck:
    torch.manual_seed(0)
    vae = AudioXAutoencoderOobleck(**{**CONFIG, "audio_channels": channels, **config})
    start_from_filter_bank(vae)
    return vae


def bands_of(vae: AudioXAutoencoderOobleck, sound: torch.Tensor) -> torch.Tensor:
    """What the encoder's first block makes of a sound, without the channels that are no bands."""
    return vae.encoder.block[0](vae.encoder.conv1(sound))[:, : 32 * sound.shape[1]]


def sound_of(vae: AudioXAutoencoderOobleck, bands: torch.Tensor) -> torch.Tensor:
    """What the decoder's last block makes of bands, where its other channels are silent."""
    block = vae.decoder.block[-1]
    silent = block.conv_t1.in_channels - bands.shape[1]
    return vae.decoder.conv2(vae.decoder.snake1(block(F.pad(bands, (0, 0, 0, silent)))))


def cosine_transform(sound: torch.Tensor, bands: int) -> torch.Tensor:
    """`[channels, samples]` -> `[channels * bands, frames]`: Princen, Johnson and Bradley's sum, as it is written."""
    frames = F.pad(sound.double(), (bands // 2, bands // 2)).unfold(-1, 2 * bands, bands)
    n, k = torch.arange(2 * bands).double(), torch.arange(bands).double()
    window = torch.sin(math.pi * (n + 0.5) / (2 * bands))
    phases = math.pi / bands * (n[:, None] + 0.5 + bands / 2) * (k + 0.5)
    spectra = (frames * window) @ torch.cos(phases) * math.sqrt(2 / bands)
    return spectra.transpose(1, 2).flatten(0, 1).float()


def noise(level: float, channels: int) -> torch.Tensor:
    return level * torch.randn(1, channels, 2048, generator=torch.Generator().manual_seed(1))


def assert_near(actual: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    assert actual.shape == expected.shape
    assert ((actual - expected).norm() / expected.norm()).item() < share


def test_the_bank_and_its_inverse_give_the_sound():
    bands = 8
    bank = cosine_bank(bands).double()
    torch.testing.assert_close(bank @ bank.T, torch.eye(bands).double(), rtol=0, atol=5e-6)
    sound = torch.randn(10 * bands, generator=torch.Generator().manual_seed(0)).double()
    rebuilt = torch.zeros_like(sound)
    for start in range(0, len(sound) - bands, bands):
        frame = slice(start, start + 2 * bands)
        rebuilt[frame] += (sound[frame] @ bank.T) @ bank
    torch.testing.assert_close(rebuilt[bands:-bands], sound[bands:-bands], rtol=0, atol=1e-5)


@MONO_AND_STEREO
@torch.no_grad()
def test_the_first_block_gives_the_bands_of_the_transform(channels):
    """To a hundredth, beside an offset that silence has too."""
    vae, sound = started(channels), noise(0.1, channels)
    offset = bands_of(vae, torch.zeros_like(sound))
    assert_near(bands_of(vae, sound) - offset, cosine_transform(sound[0], 32)[None], 0.01)


@MONO_AND_STEREO
@torch.no_grad()
def test_the_last_block_is_the_inverse(channels):
    """To a hundredth of soft sounds, at whose bands Snake is straight, beside an offset that silence has too."""
    vae, sound = started(channels), noise(0.003, channels)
    bands = cosine_transform(sound[0], 32)[None]
    found = sound_of(vae, bands) - sound_of(vae, torch.zeros_like(bands))
    inside = slice(16, -16)
    assert_near(found[..., inside], sound[..., inside], 0.01)


@torch.no_grad()
def test_snake_bends_loud_bands_before_the_inverse():
    vae, loud = started(), cosine_transform(noise(0.3, 1)[0], 32)[None]
    offset = sound_of(vae, torch.zeros_like(loud))
    bent = loud + loud.sin().square()
    expected = F.conv_transpose1d(bent, cosine_bank(32)[:, None], stride=32, padding=16)
    assert_near(sound_of(vae, loud) - offset, expected, 0.01)


@MONO_AND_STEREO
@torch.no_grad()
def test_silence_is_silence(channels):
    """Below -40 dB of full scale, all that residual units add: as a sound, and as the bands of one."""
    for seed in range(5):
        torch.manual_seed(seed)
        vae = AudioXAutoencoderOobleck(**{**CONFIG, "audio_channels": channels})
        start_from_filter_bank(vae)
        bands = bands_of(vae, torch.zeros(1, channels, 2048))
        bank = cosine_bank(32)[:, None].repeat(channels, 1, 1)
        heard = F.conv_transpose1d(bands, bank, stride=32, padding=16, groups=channels)
        assert heard.abs().max() < 0.01
        assert sound_of(vae, torch.zeros_like(bands)).abs().max() < 0.01


@torch.no_grad()
def test_channels_stay_apart():
    vae, sound = started(2), noise(0.1, 2)
    sound[:, 1] = 0
    bands = bands_of(vae, sound) - bands_of(vae, torch.zeros_like(sound))
    assert bands[:, 32:].norm() < 0.01 * bands[:, :32].norm()


def test_a_vae_that_has_no_room_for_the_bank_is_refused():
    with pytest.raises(ValueError, match="1 audio channels and the first ratio 32 needs 32 .* the VAE has 30"):
        started(channel_multiples=[15, 16])
    with pytest.raises(ValueError, match="2 audio channels and the first ratio 32 needs 64 .* the VAE has 32"):
        started(2, channel_multiples=[16, 16])
    with pytest.raises(ValueError, match="as wide as the 2 audio channels, it has 1"):
        started(2, encoder_hidden_size=1, channel_multiples=[64, 16])
    with pytest.raises(ValueError, match="plain weights"):
        started(use_weight_norm=True)
