"""Each network at full size, with hashed weights under the released names, against the reference implementation."""

import pytest
import torch
from audiobox_aesthetics.model.aes import AesMultiOutput
from transformers import ClapConfig, ClapModel

from audiox_diffusers.evaluation.catalog import (
    cnn14_state_dict,
    passt_state_dict,
    synchformer_state_dict,
    vggish_state_dict,
)
from audiox_diffusers.evaluation.frontends import passt_mel, prepare, synchformer_mel
from audiox_diffusers.evaluation.networks.aesthetics import Aesthetics
from audiox_diffusers.evaluation.networks.clap import Clap
from audiox_diffusers.evaluation.networks.cnn14 import Cnn14
from audiox_diffusers.evaluation.networks.passt import Passt
from audiox_diffusers.evaluation.networks.synchformer import Synchformer
from audiox_diffusers.evaluation.networks.vggish import VGGish

pytestmark = pytest.mark.slow


def test_vggish(wave, golden, close, released_state_dict, values):
    network = VGGish().eval()
    network.load_state_dict(vggish_state_dict(released_state_dict("vggish")))
    first, second = network.embed([(wave, 32_000), (wave, 32_000)])
    close(first["windows"], golden["net.vggish"])
    torch.testing.assert_close(second, first)
    assert sum(p.numel() for p in network.parameters()) == values["parameters"]["vggish"]


def test_cnn14(wave, golden, close, released_state_dict, values):
    network = Cnn14(16_000).eval()
    network.load_state_dict(cnn14_state_dict({"model": released_state_dict("cnn14")}))
    longer = torch.cat((wave, wave), dim=1)
    features = network.embed([(longer, 32_000), (wave, 32_000)])[1]
    close(features["windows"][0, ::4], golden["net.cnn14_embedding"])
    close(features["logits"], golden["net.cnn14_logits"])
    assert sum(p.numel() for p in network.parameters()) == values["parameters"]["cnn14"]


def test_passt(wave, golden, close, released_state_dict, values):
    network = Passt().eval()
    released = released_state_dict("passt")
    network.load_state_dict(passt_state_dict(released))
    second_head = sum(tensor.numel() for name, tensor in released.items() if name.startswith("head_dist."))
    assert sum(p.numel() for p in network.parameters()) == values["parameters"]["passt"] - second_head
    with torch.no_grad():
        features = network(passt_mel(prepare(wave, 32_000, 32_000))[None])
    close(features["windows"][0, 0], golden["net.passt_features"])
    close(features["logits"][0], golden["net.passt_logits"])
    (padded,) = network.embed([(wave, 32_000)])
    assert padded["windows"].shape == (1, 768)


def test_synchformer(wave, golden, close, released_state_dict, hashed_numbers, values):
    network = Synchformer().eval()
    for part in ("afeat_extractor", "vproj", "aproj", "transformer"):
        count = sum(p.numel() for p in getattr(network, part).parameters())
        assert count == values["parameters"][f"synchformer_{part}"]
    weights = synchformer_state_dict(released_state_dict("synchformer"), visual=False)
    result = network.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("vfeat_extractor.") for name in result.missing_keys)
    with torch.no_grad():
        mel = synchformer_mel(prepare(wave, 32_000, 16_000, remove_mean=False))
        close(network.afeat_extractor(mel[:1])[0, :, ::8], golden["net.synchformer_audio"])
        visual = hashed_numbers(14 * 8 * 768, 11).reshape(14, 8, 768)
        audio = hashed_numbers(14 * 6 * 768, 12).reshape(14, 6, 768)
        logits = network(visual, audio)
    close(logits[0], golden["net.synchformer_logits"])
    torch.testing.assert_close(logits[1], logits[0])  # with 14 segments, the first and the last are the same
    with pytest.raises(ValueError, match="at least 4.8 s"):
        network(visual[:13], audio)


def test_clap_of_the_released_size(wave, golden):
    torch.manual_seed(0)
    network = Clap(ClapModel(ClapConfig())).eval()
    mel = network.mel(prepare(wave, 32_000, 48_000))
    assert (mel[0, ::80] - golden["mel.clap_unfused"]).abs().max() < 1e-3  # dB
    features = network.embed([(wave, 32_000), (wave[:, :9_000], 32_000)])
    assert [sound["windows"].shape for sound in features] == [(1, 512)] * 2
    assert features[0]["windows"].norm().item() == pytest.approx(1)


def test_aesthetics_of_the_released_size(wave):
    torch.manual_seed(0)
    scale = {axis: {"mean": 5.0, "std": 2.0} for axis in ("CE", "CU", "PC", "PQ")}
    network = Aesthetics(AesMultiOutput(target_transform=scale)).eval()
    (alone,) = network.embed([(wave, 32_000)])
    assert alone["scores"].shape == (4,)
    # Silence that only pads a window is masked, so two equal halves score as one.
    whole = torch.cat([wave] * 10, dim=1)[:, : 20 * 32_000]
    (twice,) = network.embed([(whole, 32_000)])
    (once,) = network.embed([(whole[:, : 10 * 32_000], 32_000)])
    torch.testing.assert_close(twice["scores"], once["scores"], atol=2e-2, rtol=0)
