"""The spectrograms that each network reads, against those of the reference implementations."""

import pytest
import torch

from audiox_diffusers.evaluation.frontends import (
    cnn14_mel,
    imagebind_mel,
    passt_mel,
    prepare,
    synchformer_mel,
    vggish_mel,
)


def test_preparing_removes_the_mean_and_resamples(wave, golden, close):
    sound = prepare(wave, 32_000, 16_000)
    close(sound[:256], golden["wave.16k_first"])
    close(sound[-256:], golden["wave.16k_last"])
    close(prepare(wave, 32_000, 48_000)[:256], golden["wave.48k_first"])
    assert wave.mean().abs() > 0.01 > prepare(wave, 32_000, 32_000).mean().abs()


def test_channels_are_averaged(wave):
    stereo = torch.cat((wave, -wave))
    assert prepare(stereo, 32_000, 16_000).abs().max() == 0


def test_vggish(wave, golden, close):
    close(vggish_mel(prepare(wave, 32_000, 16_000))[:, ::4], golden["mel.vggish"])


@pytest.mark.parametrize("rate, name", [(16_000, "mel.cnn14_16k"), (32_000, "mel.cnn14_32k")])
def test_cnn14(wave, golden, rate, name):
    mel = cnn14_mel(prepare(wave, 32_000, rate), rate)
    assert mel.shape == (201, 64)
    assert (mel[::8] - golden[name]).abs().max() < 1e-3  # dB


def test_passt(wave, golden, close):
    sound = prepare(wave, 32_000, 32_000)
    mel = passt_mel(sound)
    assert mel.shape == (128, 200)
    close(mel[:, ::8], golden["mel.passt"])


def test_passt_of_a_clip_padded_to_ten_seconds(wave, values):
    expected = values["mel.passt_padded_to_10s"]
    sound = prepare(wave, 32_000, 32_000)
    mel = passt_mel(torch.nn.functional.pad(sound, (0, 320_000 - len(sound))))
    assert list(mel.shape) == expected["shape"]
    assert mel.mean().item() == pytest.approx(expected["mean"], rel=1e-4)
    torch.testing.assert_close(mel[:, -1], torch.full((128,), expected["silent_frame_value"]), atol=1e-4, rtol=0)


def test_synchformer(wave, golden, close):
    mel = synchformer_mel(prepare(wave, 32_000, 16_000, remove_mean=False))
    assert mel.shape == (5, 128, 66)
    close(mel[[0, 4], ::8], golden["mel.synchformer"])


def test_imagebind(wave, golden, close):
    close(imagebind_mel(prepare(wave, 32_000, 16_000))[:, ::16], golden["mel.imagebind"])
