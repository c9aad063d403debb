import math

import numpy as np
import pytest
import torch

from audiox_diffusers.media import log_mel, log_mel_distance, spectrogram_picture

RATE = 16000


def tone(frequency, seconds=1.0, rate=RATE, level=0.5):
    return level * torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * rate)) / rate)


def noise(seconds=1.0, level=0.1):
    return level * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def band_centre(band, num_mels, rate):
    """Convert HTK's mel to Hz."""
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    return 700 * (10 ** (highest * (band + 1) / (num_mels + 1) / 2595) - 1)


def test_shape():
    # 64 ms are 1024 samples at 16 kHz.
    assert log_mel(noise(), RATE).shape == (64, RATE // 256 + 1)
    assert log_mel(noise(), RATE, num_mels=20).shape == (20, RATE // 256 + 1)
    assert log_mel(noise(), RATE).dtype == torch.float32


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("band", [4, 30, 55])
def test_tone_is_loudest_in_its_band(rate, band):
    spectrogram = log_mel(tone(band_centre(band, 64, rate), rate=rate), rate)
    assert (spectrogram[:, 8:-8].argmax(0) == band).all()


def test_level_of_a_tone():
    # On a bin, in the centre of the only band: half of the window's sum, which is half of its length.
    spectrogram = log_mel(tone(4000, level=1.0), RATE, num_mels=1)
    centre = band_centre(0, 1, RATE)
    weights = [max(0.0, 1 - abs(mel(4000 + bin * RATE / 1024, centre))) for bin in (-1, 0, 1)]
    # A Hann window also puts half of it on each neighbour.
    expected = 256 * (0.5 * weights[0] + weights[1] + 0.5 * weights[2])
    assert spectrogram[0, 8:-8].exp().mean().item() == pytest.approx(expected, rel=0.01)


def mel(frequency, centre):
    """Return the distance from the centre of a single band: 0 at the centre, 1 at the ends."""
    return (frequency - centre) / (centre if frequency < centre else RATE / 2 - centre)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_no_band_is_empty(rate):
    click = torch.zeros(rate)
    click[rate // 2] = 1
    assert (log_mel(click, rate).max(1).values > math.log(0.1)).all()


def test_scaling_by_e_adds_one():
    difference = log_mel(noise() * math.e, RATE) - log_mel(noise(), RATE)
    assert torch.allclose(difference, torch.ones_like(difference), atol=1e-4)


def test_silence_is_the_floor():
    assert torch.allclose(log_mel(torch.zeros(RATE), RATE), torch.tensor(math.log(1e-5)))


def test_any_length():
    assert log_mel(noise()[:1], RATE).shape == (64, 1)


def test_channels_are_mixed():
    left, right = tone(500), tone(3000)
    assert torch.allclose(log_mel(torch.stack([left, right]), RATE), log_mel((left + right) / 2, RATE))
    assert torch.allclose(log_mel(torch.stack([left, -left]), RATE), torch.tensor(math.log(1e-5)))


def test_arrays_and_other_precisions():
    expected = log_mel(noise(), RATE)
    assert torch.equal(log_mel(noise().numpy(), RATE), expected)
    of_parameter = log_mel(noise().double()[None].requires_grad_(), RATE)
    assert torch.equal(of_parameter, expected) and not of_parameter.requires_grad


@pytest.mark.parametrize("waveform", [torch.zeros(1, 1, 9), torch.zeros(0), torch.zeros(9, dtype=torch.int16)])
def test_unusable_waveforms(waveform):
    with pytest.raises(ValueError, match="`waveform`"):
        log_mel(waveform, RATE)
    with pytest.raises(ValueError, match="`waveform`"):
        spectrogram_picture(waveform, RATE)
    with pytest.raises(ValueError, match="`b`"):
        log_mel_distance(torch.zeros(9), waveform, RATE)


def test_unusable_rate():
    with pytest.raises(ValueError, match="`sampling_rate`"):
        log_mel(noise(), 0)


def test_distance():
    sound = noise(level=0.1)
    assert log_mel_distance(sound, sound, RATE) == 0
    assert log_mel_distance(sound, -sound.numpy(), RATE) == 0
    assert log_mel_distance(sound, 2 * sound, RATE) == pytest.approx(math.log(2), abs=1e-4)


def test_distance_grows_with_noise():
    sound = tone(440)
    distances = [log_mel_distance(sound, sound + noise(level=level), RATE) for level in (0.01, 0.1, 1.0)]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert log_mel_distance(sound + noise(), sound, RATE) == distances[1]


def test_distance_ignores_what_nobody_hears():
    """A tone at -70 dB is silence, one at -40 dB is not: it is 20 dB above the floor in two of 64 bands."""
    silence = torch.zeros(RATE)
    assert log_mel_distance(tone(440, level=10 ** (-70 / 20)), silence, RATE) == 0
    distance = log_mel_distance(tone(440, level=10 ** (-40 / 20)), silence, RATE)
    assert distance == pytest.approx(2 * math.log(10) / 64, rel=0.1)


def test_distance_needs_equal_lengths():
    with pytest.raises(ValueError, match="`a` and `b`.*16000 and 8000"):
        log_mel_distance(noise(), noise(0.5), RATE)


def brightness(waveform, rate=RATE):
    picture = spectrogram_picture(waveform, rate)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int).sum(-1)


@pytest.mark.parametrize("band", [20, 64, 110])
def test_picture_of_a_tone(band):
    rows = brightness(tone(band_centre(band, 128, RATE), level=0.5))[:, 8:-8]
    assert rows.shape[0] == 256
    # Two rows per band, the lowest of 128 bands at the bottom.
    assert (np.isin(rows.argmax(0), [255 - 2 * band, 254 - 2 * band])).all()


def test_pictures_share_one_range():
    assert brightness(torch.zeros(RATE)).max() == 4  # the colour of the lowest level, (0, 0, 4)
    quiet, loud = brightness(noise(level=0.01)), brightness(noise(level=0.1))
    # 20 dB of the 80 dB in the picture.
    assert (loud > quiet).all()
    assert brightness(tone(band_centre(64, 128, RATE), level=1.0)).max() > 650 > loud.max()


def test_width_of_a_picture():
    assert spectrogram_picture(np.zeros((2, 2 * RATE), np.float32), RATE).size == (2 * RATE // 256 + 1, 256)
