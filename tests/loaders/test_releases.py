"""The layouts in which releases are published, for load_original_checkpoint."""

import json
import shutil

import pytest
import torch
from helpers import assert_equal, refused, seeded
from safetensors.torch import save_file
from small_releases import RELEASES, VAE, save, small_release, small_synchformer, write_published

from audiox_diffusers import AudioXFlowMatchScheduler, load_original_checkpoint
from audiox_diffusers.loaders import fold_weight_norm
from audiox_diffusers.loaders.releases import find_layout

NETWORKS = ("transformer", "conditioner", "vae", "image_encoder")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of all releases as they are published, by name."""
    root = tmp_path_factory.mktemp("published")
    for name in RELEASES[:4]:
        write_published(name, root / name)
    return {name: root / name for name in RELEASES[:4]}


@pytest.fixture
def load(fixtures_path, tokenizer):
    def load(checkpoint, **kwargs):
        folder = fixtures_path / "audiox"
        return load_original_checkpoint(
            checkpoint, text_encoder=folder / "text_encoder", tokenizer=tokenizer, **kwargs
        )

    return load


def assert_same_networks(pipe, other):
    for name in (*NETWORKS, "sync_encoder"):
        if getattr(pipe, name) is None:
            assert getattr(other, name) is None
        else:
            assert_equal(dict(getattr(other, name).state_dict()), dict(getattr(pipe, name).state_dict()))


@pytest.mark.parametrize("name", RELEASES[:4])
def test_published_folder(published, load, name):
    pipe = load(published[name])
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.sync_encoder is None) == (name == "audiox")
    audio = pipe("rain", num_inference_steps=2, generator=seeded()).audios
    assert audio.shape == (1, 2, 192) and abs(audio).max() > 0


def test_student_and_teacher(published, load):
    student, teacher = load(published["audiox-turbo"]), load(published["audiox-turbo"], variant="teacher")
    for pipe, stochastic, steps, guidance in ((student, True, 4, 1.0), (teacher, False, 100, 6.0)):
        assert isinstance(pipe.scheduler, AudioXFlowMatchScheduler)
        assert pipe.scheduler.config.stochastic_sampling is stochastic
        assert (pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale) == (steps, guidance)
    positions = "context_to_positions.weight"
    assert not torch.equal(student.transformer.state_dict()[positions], teacher.transformer.state_dict()[positions])
    assert_equal(dict(student.vae.state_dict()), dict(teacher.vae.state_dict()))


def test_layouts_of_turbo(published, load, tmp_path):
    """The folder of the download script, its parent, the files themselves, and files of their own by name."""
    source = published["audiox-turbo"]
    expected = {variant: load(source, variant=variant) for variant in ("student", "teacher")}
    shutil.copytree(source, tmp_path / "AudioX-Turbo" / "checkpoints")
    (tmp_path / "AudioX-Turbo" / "checkpoints" / "config.json").unlink()
    for folder in (tmp_path / "AudioX-Turbo", tmp_path / "AudioX-Turbo" / "checkpoints"):
        assert_same_networks(load(folder), expected["student"])
        assert_same_networks(load(folder, variant="teacher"), expected["teacher"])
    checkpoints = tmp_path / "AudioX-Turbo" / "checkpoints"
    assert_same_networks(load(checkpoints / "audiox_turbo" / "audiox_turbo.ckpt"), expected["student"])
    teacher = load(checkpoints / "pretrained_ckpt" / "pretrained_ckpt.ckpt")
    assert_same_networks(teacher, expected["teacher"])
    assert not teacher.scheduler.config.stochastic_sampling

    files = {
        "vae": checkpoints / "pretransform" / "vae.ckpt",
        "synchformer": checkpoints / "synchformer" / "synchformer_state_dict.pth",
    }
    alone = tmp_path / "downloads" / "student.ckpt"
    alone.parent.mkdir()
    shutil.copy(checkpoints / "audiox_turbo" / "audiox_turbo.ckpt", alone)
    assert_same_networks(load(alone, config="audiox-turbo", **files), expected["student"])
    as_teacher = load(alone, config="audiox-base", **files)
    assert not as_teacher.scheduler.config.stochastic_sampling and as_teacher.config.default_guidance_scale == 6.0
    with refused("`config`", "no config.json beside", "audiox-turbo", error=FileNotFoundError):
        load(alone, **files)
    shutil.rmtree(checkpoints / "audiox_turbo")
    assert_same_networks(load(checkpoints), expected["teacher"])


@pytest.mark.parametrize("name", ["audiox", "audiox-maf", "audiox-maf-mmdit"])
def test_mirror_with_safetensors(published, load, tmp_path, name):
    config, state_dict = small_release(name)
    save_file({key: value.clone() for key, value in state_dict.items()}, tmp_path / "model.safetensors")
    if name != "audiox":
        save_file(small_synchformer(), tmp_path / "synchformer_state_dict.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_networks(load(tmp_path), load(published[name]))


@pytest.mark.parametrize("prefix", ["module.", "model.", "student.", "student.model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "student", "student_state_dict"])
def test_wrappers_and_prefixes(published, load, tmp_path, wrapper, prefix):
    _, state_dict = small_release("audiox-turbo")
    state_dict = {prefix + key: value for key, value in state_dict.items()}
    wrapped = state_dict if wrapper is None else {wrapper: state_dict, "step": 3, "optimizer": {"lr": 1.0}}
    torch.save(wrapped, tmp_path / "student.pt")
    files = {"synchformer": published["audiox-turbo"] / "synchformer" / "synchformer_state_dict.pth"}
    assert_same_networks(
        load(tmp_path / "student.pt", config="audiox-turbo", **files), load(published["audiox-turbo"])
    )


@pytest.mark.parametrize("place", ["inside", "beside", "both", "conditioner"])
def test_place_of_the_vae(published, load, tmp_path, place):
    config, state_dict = small_release("audiox")
    vae = {key.removeprefix(VAE): value for key, value in state_dict.items() if key.startswith(VAE)}
    if place == "beside":
        state_dict = {key: value for key, value in state_dict.items() if VAE not in key}
    if place == "conditioner":
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith(VAE)}
    if place in ("beside", "both"):
        save(vae, tmp_path / "vae.ckpt", wrapped=place == "both")
    save(state_dict, tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_networks(load(tmp_path), load(published["audiox"]))


def test_given_vae_comes_first(load, tmp_path):
    config, state_dict = small_release("audiox")
    vae = {key.removeprefix(VAE): value for key, value in state_dict.items() if key.startswith(VAE)}
    vae["decoder.layers.0.bias"] = vae["decoder.layers.0.bias"] + 1
    save(vae, tmp_path / "other.ckpt")
    save(state_dict, tmp_path / "model.ckpt")
    pipe = load(tmp_path / "model.ckpt", config=config, vae=tmp_path / "other.ckpt")
    assert_equal(pipe.vae.state_dict()["decoder.conv1.bias"], vae["decoder.layers.0.bias"])


def test_what_is_refused(published, load, tmp_path):
    """Each message says what was expected and what was found."""
    (tmp_path / "notes.txt").write_text("notes")
    with refused("Expected model.safetensors", "audiox_turbo.ckpt", "found notes.txt", error=FileNotFoundError):
        load(tmp_path)
    for content, found in (({"unet.weight": torch.ones(1)}, "unet.weight"), ({}, "nothing"), ([1], "a list")):
        torch.save(content, tmp_path / "model.ckpt")
        with refused("not an AudioX checkpoint", "xpected", f"found {found}"):
            load(tmp_path / "model.ckpt", config="audiox")
    torch.save({"fake_score": {"a": torch.ones(1)}}, tmp_path / "model.ckpt")
    with refused("under state_dict, model, student", "found fake_score"):
        load(tmp_path / "model.ckpt", config="audiox")
    _, state_dict = small_release("audiox")
    save(state_dict | {"discriminator.weight": torch.ones(1)}, tmp_path / "model.ckpt")
    with refused("discriminator.weight", "no release of this kind has"):
        load(tmp_path / "model.ckpt", config="audiox")
    with refused("`variant`", "'student' or 'teacher'", "'fast'"):
        load(published["audiox-turbo"], variant="fast")
    with refused("`variant`", "only AudioX-Turbo"):
        load(published["audiox"], variant="teacher")
    with refused("`config`", "neither a file nor one of audiox, audiox-maf", error=FileNotFoundError):
        load(tmp_path / "model.ckpt", config="audiox-large")


@pytest.mark.parametrize(
    ("weights", "config"),
    [
        ("audiox", "audiox-maf"),
        ("audiox-maf", "audiox-maf-mmdit"),
        ("audiox-maf-mmdit", "audiox"),
        ("audiox", "audiox-turbo"),
    ],
)
def test_config_of_another_release(load, tmp_path, weights, config):
    _, state_dict = small_release(weights)
    save(state_dict, tmp_path / "model.ckpt")
    save(small_synchformer(), tmp_path / "synchformer_state_dict.pth")
    with refused("`config`"):
        load(tmp_path / "model.ckpt", config=config)
    with refused("`config`"):
        load(tmp_path / "model.ckpt", config=small_release(config)[0])


def test_truncated_files(published, load, tmp_path):
    for name in ("audiox_turbo/audiox_turbo.ckpt", "pretransform/vae.ckpt", "synchformer/synchformer_state_dict.pth"):
        folder = tmp_path / name.split("/")[0]
        shutil.copytree(published["audiox-turbo"], folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with refused(name, "damaged"):
            load(folder)


def test_layout_prefers_the_student_and_safetensors():
    files = {
        f"{folder}/{folder}{suffix}"
        for folder in ("audiox_turbo", "pretrained_ckpt")
        for suffix in (".ckpt", ".safetensors")
    }
    assert find_layout(files.__contains__).checkpoint == "audiox_turbo/audiox_turbo.safetensors"
    assert find_layout(files.__contains__, "teacher").checkpoint == "pretrained_ckpt/pretrained_ckpt.safetensors"
    assert find_layout({"model.ckpt", "model.safetensors", *files}.__contains__).checkpoint == "model.safetensors"
    assert find_layout({"weights.ckpt"}.__contains__) is None


def test_weight_norm_is_folded(published, load):
    _, state_dict = small_release("audiox-maf")
    vae = {key.removeprefix(VAE): value for key, value in state_dict.items() if key.startswith(VAE)}
    expected = fold_weight_norm(vae)["encoder.layers.0.weight"]
    assert_equal(load(published["audiox-maf"]).vae.encoder.conv1.weight.data, expected)
