"""Released checkpoint -> pipeline -> released checkpoint."""

import json
import shutil

import pytest
import torch
from helpers import assert_equal, refused, seeded
from peft import LoraConfig
from safetensors.torch import load_file
from small_releases import RELEASES, VAE, small_release, small_synchformer, write_published

from audiox_diffusers import AudioXPipeline, load_original_checkpoint
from audiox_diffusers.cli import main
from audiox_diffusers.loaders import (
    convert_state_dict,
    convert_synchformer_state_dict,
    fold_weight_norm,
    published_config,
    restore_state_dict,
    restore_synchformer_state_dict,
)
from audiox_diffusers.loaders.original_config import component_configs

UNUSED = ("to_global_embed.0.weight", "to_global_embed.2.weight")
UNUSED_MMDIT = (*UNUSED, "to_cond_embed.0.weight", "to_cond_embed.2.weight", "cross_attn.to_q.weight")


def read(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content)


@pytest.fixture(scope="module", params=RELEASES)
def release(request, tmp_path_factory, fixtures_path, tokenizer):
    """Name, folder, and the converted folder of a small release."""
    root = tmp_path_factory.mktemp(request.param)
    write_published(request.param, root / "published")
    pipe = load_original_checkpoint(
        root / "published",
        text_encoder=fixtures_path / "audiox" / "text_encoder",
        tokenizer=tokenizer,
        variant="teacher" if request.param == "audiox-base" else None,
    )
    pipe.save_pretrained(root / "converted")
    return request.param, root / "published", root / "converted"


def checkpoint_of(name):
    folders = {"audiox-turbo": "audiox_turbo/audiox_turbo.ckpt", "audiox-base": "pretrained_ckpt/pretrained_ckpt.ckpt"}
    return folders.get(name, "model.ckpt")


def is_vae_weight(key):
    return VAE in key and key.endswith(("weight_g", "weight_v"))


def test_every_tensor_comes_back(release, tmp_path):
    """To the bit; what nothing uses as zeros; the weight norm of the VAE gives equal weights."""
    name, published, converted = release
    assert main(["export", str(converted), str(tmp_path / "back")]) == 0
    _, original = small_release(name)
    back = read(tmp_path / "back" / checkpoint_of(name))
    assert back.keys() == original.keys()
    mmdit = name not in ("audiox", "audiox-maf")
    for key, tensor in original.items():
        if key.endswith(UNUSED_MMDIT if mmdit else UNUSED):
            assert back[key].shape == tensor.shape and not back[key].any()
        elif mmdit and key.endswith("cross_attn.to_kv.weight"):
            assert_equal(back[key][::2], tensor[::2])
            assert not back[key][1::2].any()
        elif not is_vae_weight(key):
            assert_equal(back[key], tensor)
    assert_equal(fold_weight_norm(_vae(back)), fold_weight_norm(_vae(original)))
    if name != "audiox":
        folder = tmp_path / "back" / ("synchformer" if name in ("audiox-turbo", "audiox-base") else "")
        sync = read(folder / "synchformer_state_dict.pth")
        assert_equal(convert_synchformer_state_dict(sync), convert_synchformer_state_dict(small_synchformer()))


def _vae(state_dict):
    return {key.removeprefix(VAE): tensor for key, tensor in state_dict.items() if key.startswith(VAE)}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_like_gives_every_bit(release, tmp_path, suffix):
    name, published, converted = release
    target = tmp_path / f"model{suffix}"
    assert main(["export", str(converted), str(target), "--like", str(published)]) == 0
    _, original = small_release(name)
    assert_equal(read(target), original)
    if name != "audiox":
        sync = tmp_path / ("synchformer_state_dict.pth" if suffix == ".ckpt" else "synchformer_state_dict.safetensors")
        assert_equal(read(sync), small_synchformer())


def test_config_comes_back(release, tmp_path):
    name, published, converted = release
    assert main(["export", str(converted), str(tmp_path / "back")]) == 0
    config, original = small_release(name)
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    pipe = AudioXPipeline.from_pretrained(converted)
    for component, settings in component_configs(back, original).items():
        actual = getattr(pipe, component).config
        assert {key: actual[key] for key in settings} == settings
    assert back["model_type"] == config["model_type"] and back["sample_size"] == config["sample_size"]


def test_exported_checkpoint_loads_and_sounds_the_same(release, tmp_path, fixtures_path, tokenizer, close):
    name, published, converted = release
    shutil.copytree(converted, tmp_path / "model")
    options = {"text_encoder": fixtures_path / "audiox" / "text_encoder", "tokenizer": tokenizer}
    audios = []
    for target in (tmp_path / "back", tmp_path / "files" / "audiox.safetensors"):
        target.parent.mkdir(exist_ok=True)
        assert main(["export", str(tmp_path / "model"), str(target)]) == 0
        variant = "teacher" if name == "audiox-base" else None
        pipe = load_original_checkpoint(target, variant=variant, **options)
        pipe.set_progress_bar_config(disable=True)
        audios.append(pipe("rain", num_inference_steps=2, generator=seeded()).audios)
        assert pipe.config.default_num_inference_steps == {"audiox-turbo": 4, "audiox-base": 100}.get(name, 250)
    pipe = load_original_checkpoint(published, variant="teacher" if name == "audiox-base" else None, **options)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("rain", num_inference_steps=2, generator=seeded()).audios
    for audio in audios:
        close(torch.from_numpy(audio), torch.from_numpy(expected))


def test_fine_tuned_weights_are_written(release, tmp_path, fixtures_path, tokenizer):
    """A changed tensor is that of the pipeline, also with --like."""
    name, published, converted = release
    pipe = AudioXPipeline.from_pretrained(converted)
    with torch.no_grad():
        pipe.transformer.proj_in.weight += 1
        pipe.vae.decoder.conv1.weight += 1
    pipe.save_pretrained(tmp_path / "tuned")
    assert main(["export", str(tmp_path / "tuned"), str(tmp_path / "m.ckpt"), "--like", str(published)]) == 0
    back, (_, original) = read(tmp_path / "m.ckpt"), small_release(name)
    assert_equal(back["model.model.transformer.project_in.weight"], pipe.transformer.proj_in.weight.data)
    folded = fold_weight_norm(_vae(back))["decoder.layers.0.weight"]
    assert_equal(folded, pipe.vae.decoder.conv1.weight.data)
    module = torch.nn.utils.weight_norm(torch.nn.Conv1d(*folded.shape[1::-1], folded.shape[2], bias=False))
    module.load_state_dict({key: _vae(back)[f"decoder.layers.0.{key}"] for key in ("weight_g", "weight_v")})
    module(torch.zeros(1, folded.shape[1], 16))
    torch.testing.assert_close(module.weight, folded)
    changed = {key for key in original if not torch.equal(back[key], original[key])}
    assert {key.removeprefix("conditioner.conditioners.audio_prompt.") for key in changed} == {
        "model.model.transformer.project_in.weight",
        VAE + "decoder.layers.0.weight_g",
        VAE + "decoder.layers.0.weight_v",
    }


def test_lora_is_fused(release, tmp_path):
    name, published, converted = release
    if name not in ("audiox", "audiox-turbo"):
        return

    pipe = AudioXPipeline.from_pretrained(converted)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    pipe.save_lora_adapter(tmp_path / "lora")
    fused = AudioXPipeline.from_pretrained(converted)
    fused.load_lora_weights(tmp_path / "lora")
    fused.fuse_lora()
    fused.unload_lora_weights()
    expected = fused.transformer.transformer_blocks[0].attn1.to_q.weight.data
    target = tmp_path / "model.ckpt"
    assert main(["export", str(converted), str(target), "--fuse-lora", str(tmp_path / "lora")]) == 0
    back = convert_state_dict(read(target))["transformer"]["transformer_blocks.0.attn1.to_q.weight"]
    assert_equal(back, expected)
    assert not torch.equal(
        back,
        AudioXPipeline.from_pretrained(converted).transformer.state_dict()["transformer_blocks.0.attn1.to_q.weight"],
    )


def test_half_precision_stays(release, tmp_path, fixtures_path, tokenizer):
    name, published, converted = release
    if name != "audiox":
        return
    pipe = load_original_checkpoint(
        published, text_encoder=fixtures_path / "audiox" / "text_encoder", tokenizer=tokenizer, dtype=torch.float16
    )
    pipe.save_pretrained(tmp_path / "half")
    assert main(["export", str(tmp_path / "half"), str(tmp_path / "m.safetensors")]) == 0
    back, (_, original) = read(tmp_path / "m.safetensors"), small_release(name)
    key = "model.model.transformer.project_in.weight"
    assert_equal(back[key], original[key].half())


def test_what_is_refused(release, tmp_path, capsys):
    name, published, converted = release
    other = "audiox-maf" if name == "audiox" else "audiox"
    write_published(other, tmp_path / "other")
    (tmp_path / "exists.ckpt").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for words, arguments in (
        ("`like` is another release", [tmp_path / "back", "--like", tmp_path / "other"]),
        ("exists", [tmp_path / "exists.ckpt"]),
        ("not an empty folder", [tmp_path / "full"]),
        ("no such file or folder", [tmp_path / "back", "--like", tmp_path / "no" / "file.ckpt"]),
        ("no such folder", [tmp_path / "no" / "back.ckpt"]),
    ):
        assert main(["export", str(converted), *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_full_size_by_name_and_shape(any_manifest):
    """Every released name and shape comes back, on the meta device."""
    name, config, state_dict = any_manifest
    components = convert_state_dict(state_dict)
    components["vae"] = fold_weight_norm(components["vae"])
    back = restore_state_dict(components, rotary_dim=32)
    assert {key: tensor.shape for key, tensor in back.items()} == {
        key: tensor.shape for key, tensor in state_dict.items()
    }
    assert published_config(name) == config


def test_unknown_tensors_are_named():
    _, state_dict = small_release("audiox")
    components = convert_state_dict(state_dict)
    components["vae"] = fold_weight_norm(components["vae"])
    components["transformer"]["proj_in.lora_A.default.weight"] = torch.zeros(1)
    with refused("unknown tensors: transformer.proj_in.lora_A.default.weight"):
        restore_state_dict(components, rotary_dim=32)


def test_synchformer_comes_back():
    state_dict = small_synchformer()
    converted = convert_synchformer_state_dict(state_dict)
    assert_equal(restore_synchformer_state_dict(converted, state_dict), state_dict)
    without = restore_synchformer_state_dict(converted)
    tower = {key for key in state_dict if key.startswith("vfeat_extractor.")}
    assert without.keys() == tower
    for key in tower:
        if key.startswith("vfeat_extractor.patch_embed."):
            assert without[key].shape == state_dict[key].shape and not without[key].any()
        else:
            assert_equal(without[key], state_dict[key])
