import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from audiox_diffusers.media import MediaError, load_audio, resample_audio, save_audio, save_video


def sine(rate, frequency=440.0, seconds=1.0, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def peak(signal, rate):
    """Return the frequency of the strongest partial in Hz."""
    spectrum = torch.as_tensor(signal).double().mul(torch.hann_window(len(signal), dtype=torch.float64))
    return float(torch.fft.rfft(spectrum).abs().argmax()) * rate / len(signal)


def rms(signal):
    return float(torch.as_tensor(signal).double().pow(2).mean().sqrt())


def write_pcm(path, samples, rate, codec="pcm_s16le", form="s16", layout="mono"):
    """Write `samples` [channels, n], in the format's own numpy type."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate, layout=layout)
        stream.format = form
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T.reshape(1, -1)), format=form, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "codec, form, samples, expected",
    [
        ("pcm_u8", "u8", np.array([0, 64, 128, 255], np.uint8), [-1, -0.5, 0, 127 / 128]),
        ("pcm_s16le", "s16", np.array([-32768, 16384, 1, 32767], np.int16), [-1, 0.5, 2**-15, 1 - 2**-15]),
        ("pcm_s24le", "s32", np.array([-(2**31), 2**30, 2**8, 0], np.int32), [-1, 0.5, 2**-23, 0]),
        ("pcm_s32le", "s32", np.array([-(2**31), 2**30, 2**10, 0], np.int32), [-1, 0.5, 2**-21, 0]),
        ("pcm_f32le", "flt", np.array([-1.5, 0.25, 1e-9, 3], np.float32), [-1.5, 0.25, 1e-9, 3]),
        ("pcm_f64le", "dbl", np.array([-1.5, 0.25, 0.1, 3], np.float64), [-1.5, 0.25, 0.1, 3]),
    ],
)
def test_sample_formats_are_scaled(tmp_path, codec, form, samples, expected):
    path = write_pcm(tmp_path / "sound.wav", samples[None], 8000, codec, form)
    waveform, rate = load_audio(path)
    assert rate == 8000 and waveform.dtype == torch.float32
    assert torch.equal(waveform, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"])
def test_sine_survives(tmp_path, suffix, rate):
    save_audio(tmp_path / f"sound{suffix}", sine(rate)[None], rate)
    waveform, new_rate = load_audio(tmp_path / f"sound{suffix}")

    assert waveform.shape[0] == 1
    if suffix in (".wav", ".flac"):
        assert new_rate == rate and torch.allclose(waveform[0], torch.from_numpy(sine(rate)), atol=2**-15)
    # AAC fills its last block.
    assert 0 <= waveform.shape[1] - new_rate < (1024 if suffix == ".m4a" else 1)
    middle = waveform[0, new_rate // 10 : new_rate - new_rate // 10]
    assert abs(peak(middle, new_rate) - 440) < 2
    # LAME lowers the level by a few percent.
    assert rms(middle) == pytest.approx(0.5 / math.sqrt(2), rel=0.06 if suffix == ".mp3" else 0.01)


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".opus"])
def test_encoder_delay_is_removed(tmp_path, suffix):
    signal = np.zeros((1, 24000), np.float32)
    signal[0, 12000:] = sine(24000, seconds=0.5)
    save_audio(tmp_path / f"sound{suffix}", signal, 24000)
    waveform, rate = load_audio(tmp_path / f"sound{suffix}")
    onset = int((waveform[0].abs() > 0.2).nonzero()[0]) / rate
    assert onset == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("new_rate", [8000, 44100, 96000])
def test_sampling_rate(tmp_path, new_rate):
    save_audio(tmp_path / "sound.wav", sine(48000)[None], 48000)
    waveform, rate = load_audio(tmp_path / "sound.wav", sampling_rate=new_rate)
    assert rate == new_rate and waveform.shape == (1, new_rate)
    assert abs(peak(waveform[0], rate) - 440) < 1
    assert rms(waveform) == pytest.approx(0.5 / math.sqrt(2), rel=0.01)
    assert torch.equal(waveform, resample_audio(load_audio(tmp_path / "sound.wav")[0], 48000, new_rate))


def test_mono_to_stereo_keeps_the_level(tmp_path):
    save_audio(tmp_path / "sound.wav", sine(8000), 8000)
    mono, _ = load_audio(tmp_path / "sound.wav")
    stereo, _ = load_audio(tmp_path / "sound.wav", channels=2)
    assert torch.equal(stereo, mono.repeat(2, 1))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_stereo_to_mono_is_the_mean(tmp_path, suffix):
    sound = np.stack([sine(8000, 440), sine(8000, 1000)])
    save_audio(tmp_path / f"sound{suffix}", sound, 8000)
    stereo, _ = load_audio(tmp_path / f"sound{suffix}")
    mono, _ = load_audio(tmp_path / f"sound{suffix}", channels=1)
    assert stereo.shape == (2, 8000) and mono.shape == (1, 8000)
    assert torch.allclose(mono[0], stereo.mean(0), atol=1e-6)


def test_surround(tmp_path):
    frequencies = [300, 400, 500, 60, 600, 700]  # left, right, centre, deep, left and right behind
    sound = np.stack([sine(8000, frequency) for frequency in frequencies])
    save_audio(tmp_path / "sound.flac", sound, 8000)

    kept, _ = load_audio(tmp_path / "sound.flac")
    assert [round(peak(channel, 8000)) for channel in kept] == frequencies

    stereo, _ = load_audio(tmp_path / "sound.flac", channels=2)
    spectrum = torch.fft.rfft(stereo.double()).abs() / 4000 / 0.5
    # FFmpeg's matrix: front 1, centre and back 0.707, low frequencies 0, scaled to a sum of 1.
    front = 1 / (1 + math.sqrt(2))
    expected = torch.tensor([[1, 0, 0.5**0.5, 0, 0.5**0.5, 0], [0, 1, 0.5**0.5, 0, 0, 0.5**0.5]]) * front
    assert torch.allclose(spectrum[:, frequencies].float(), expected, atol=1e-3)
    assert load_audio(tmp_path / "sound.flac", channels=1)[0].shape == (1, 8000)


def test_eight_channels(tmp_path):
    sound = np.stack([sine(8000, 300 + 100 * channel, 0.5) for channel in range(8)])
    save_audio(tmp_path / "sound.wav", sound, 8000)
    assert torch.allclose(load_audio(tmp_path / "sound.wav")[0], torch.from_numpy(sound), atol=2**-15)


def test_window(tmp_path):
    save_audio(tmp_path / "sound.flac", np.arange(20000, dtype=np.float32) / 32768, 10000)
    whole, _ = load_audio(tmp_path / "sound.flac")
    assert torch.equal(whole, torch.arange(20000)[None] / 32768)
    for start, duration, first, stop in [(0, 0.5, 0, 5000), (0.7, 0.61, 7000, 13100), (1.5, 9, 15000, 20000)]:
        part, _ = load_audio(tmp_path / "sound.flac", start=start, duration=duration)
        assert torch.equal(part, whole[:, first:stop])
    assert torch.equal(load_audio(tmp_path / "sound.flac", start=1.25)[0], whole[:, 12500:])
    for start in (2.0, 30.0):
        with pytest.raises(MediaError, match="past its end"):
            load_audio(tmp_path / "sound.flac", start=start)


def test_sound_of_a_video(tmp_path):
    save_video(tmp_path / "clip.mp4", torch.zeros(12, 3, 24, 32), sine(44100), 44100, fps=12)
    waveform, rate = load_audio(tmp_path / "clip.mp4")
    assert rate == 44100 and abs(peak(waveform[0, :44100], rate) - 440) < 1
    assert torch.allclose(waveform[0, 4410:39690], torch.from_numpy(sine(44100))[4410:39690], atol=0.05)


def test_video_without_sound(tmp_path):
    save_video(tmp_path / "clip.mp4", torch.zeros(12, 3, 24, 32), fps=12)
    with pytest.raises(MediaError, match=r"clip\.mp4: has no audio stream"):
        load_audio(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    "name, value",
    [
        ("sampling_rate", 0),
        ("sampling_rate", float("nan")),
        ("sampling_rate", 22050.5),
        ("channels", 3),
        ("start", -1.0),
        ("start", float("nan")),
        ("duration", 0.0),
        ("duration", float("inf")),
    ],
)
def test_arguments_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        load_audio(tmp_path / "missing.wav", **{name: value})


def test_resample_audio():
    signal = torch.from_numpy(sine(44100))[None]
    assert resample_audio(signal, 44100, 44100) is signal
    resampled = resample_audio(signal, 44100, 16000)
    assert resampled.shape == (1, 16000) and abs(peak(resampled[0], 16000) - 440) < 1
    for rates in [(0, 44100), (44100, -1), (44100, float("nan"))]:
        with pytest.raises(ValueError, match="_rate"):
            resample_audio(signal, *rates)
