"""Load and run whole checkpoints of the later releases, assembled from small parts."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import seeded
from safetensors.torch import load_file
from small_releases import VAE, small_release

from audiox_diffusers import (
    AudioXFlowMatchScheduler,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
    load_original_checkpoint,
)
from audiox_diffusers.media import save_video
from audiox_diffusers.pipelines import save_features

RELEASES = ("audiox-maf", "audiox-maf-mmdit", "audiox-turbo")


@pytest.fixture(scope="module")
def sync_encoder():
    """Return a Synchformer of the small width. It reads 248 frames of a window and returns 240 tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SynchformerVisionModel(image_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    return model.eval()


@pytest.fixture(scope="module", params=RELEASES)
def release(request, tmp_path_factory, fixtures_path):
    """Return the name and folder of a release: config.json and model.ckpt, and vae.ckpt if it is separate."""
    config, state_dict = small_release(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "audiox-turbo":
        vae = {key.replace(VAE, "autoencoder."): value for key, value in state_dict.items() if key.startswith(VAE)}
        torch.save({"state_dict": vae}, folder / "vae.ckpt")
        state_dict = {key: value for key, value in state_dict.items() if VAE not in key}
    torch.save({"state_dict": state_dict}, folder / "model.ckpt")
    (folder / "config.json").write_text(json.dumps(config))
    return request.param, folder


@pytest.fixture
def load(release, fixtures_path, tokenizer, sync_encoder):
    def load(**kwargs):
        return load_original_checkpoint(
            release[1],
            text_encoder=fixtures_path / "audiox" / "text_encoder",
            tokenizer=tokenizer,
            image_encoder_config=fixtures_path / "audiox" / "image_encoder",
            **{"synchformer": copy.deepcopy(sync_encoder), **kwargs},
        )

    return load


@pytest.fixture
def family_pipe(load):
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return one second of a video in which a bright square moves."""
    frames = np.zeros((25, 36, 64, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 2 * index : 2 * index + 12] = 250
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    save_video(path, frames, fps=25)
    return path


def test_every_task_and_round_trip(release, family_pipe, clip, tmp_path, close):
    sound = torch.randn(2, 160, generator=seeded()) / 3, 44100
    inputs = [
        {"prompt": "rain"},
        {"video": clip},
        {"prompt": "rain", "video": clip, "negative_prompt": "wind", "guidance_scale": 2.0},
        {"prompt": "rain", "audio": sound},
        {"prompt": "rain", "image": torch.full((3, 40, 60), 0.7)},
    ]
    steps = {"num_inference_steps": 2, "output_type": "latent"}
    results = [family_pipe(**kwargs, **steps, generator=[seeded()]).audios for kwargs in inputs]
    for i, result in enumerate(results):
        assert result.shape == (1, 8, 24) and result.isfinite().all()
        assert all((result - other).abs().max() > 1e-3 for other in results[:i])

    family_pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["sync_encoder"] == ["diffusers", "SynchformerVisionModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name in ("transformer", "conditioner", "sync_encoder"):
        expected, actual = family_pipe.components[name].state_dict(), loaded.components[name].state_dict()
        assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())
    for kwargs, result in zip(inputs, results, strict=True):
        close(loaded(**kwargs, **steps, generator=[seeded()]).audios, result)


def test_defaults_of_the_release(release, family_pipe):
    name, _ = release
    turbo = name == "audiox-turbo"
    assert isinstance(family_pipe.scheduler, AudioXFlowMatchScheduler) == turbo
    if turbo:
        calls = []
        family_pipe.transformer.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
        family_pipe("rain")
        assert calls == [1, 1, 1, 1]
    else:
        config = family_pipe.config
        assert (config.default_num_inference_steps, config.default_guidance_scale) == (250, 7.0)


def test_each_item_is_the_same_alone_and_in_a_batch(family_pipe, clip, close):
    sound = torch.randn(2, 160, generator=seeded()) / 3, 44100
    prompts, videos, sounds = ["rain", None, "bell"], [None, clip, None], [sound, None, None]
    options = {"num_inference_steps": 2, "output_type": "latent"}
    batch = family_pipe(
        prompt=prompts, video=videos, audio=sounds, generator=[seeded(i) for i in range(3)], **options
    ).audios
    for i in range(3):
        alone = family_pipe(
            prompt=prompts[i], video=videos[i], audio=sounds[i], generator=[seeded(i)], **options
        ).audios
        close(batch[i], alone[0], 1e-4)


@torch.no_grad()
def test_sync_tokens_of_a_video(family_pipe, clip):
    """All segments of a still picture have the same tokens. The last frame of a video is repeated."""
    config = family_pipe.sync_encoder.config
    frames = torch.rand(30, 3, 32, 32, generator=seeded())
    tokens = family_pipe.encode_sync(frames)
    assert tokens.shape == (1, 240, 64)
    first = family_pipe.sync_encoder((frames[:16] * 2 - 1)[None]).last_hidden_state
    torch.testing.assert_close(tokens[:, :8], first, atol=1e-5, rtol=1e-4)
    second = family_pipe.sync_encoder((frames[8:24] * 2 - 1)[None]).last_hidden_state
    torch.testing.assert_close(tokens[:, 8:16], second, atol=1e-5, rtol=1e-4)

    still = family_pipe.encode_sync(image=frames[-1])
    torch.testing.assert_close(still[:, -8:], still[:, :8])
    torch.testing.assert_close(tokens[:, -8:], still[:, -8:], atol=1e-5, rtol=1e-4)
    assert family_pipe.encode_sync(clip).shape == (1, 240, 64)
    assert family_pipe.video_fps == config.video_fps == 25
    rows = family_pipe.encode_sync([None, frames])
    assert not rows[0].any() and torch.equal(rows[1], tokens[0])


@torch.no_grad()
def test_image_encoder_sees_every_fifth_frame(family_pipe, clip):
    """Frames come at 25 per second, and CLIP sees 5 of them."""
    frames = torch.rand(20, 3, 64, 64, generator=seeded())
    with_all = family_pipe.encode_video(frames)
    thinned = frames.clone()
    for keep in range(20):
        if keep % 5:
            thinned[keep] = 0.5
    assert torch.equal(family_pipe.encode_video(thinned), with_all)
    changed = frames.clone()
    changed[5] = 0.5
    assert not torch.equal(family_pipe.encode_video(changed), with_all)


@torch.no_grad()
def test_features_stand_for_the_video(family_pipe, clip, tmp_path):
    save_features(tmp_path / "clip.safetensors", family_pipe.encode_video(clip)[0], family_pipe.encode_sync(clip)[0])
    results = [
        family_pipe(video=video, num_inference_steps=2, generator=seeded()).audios
        for video in (clip, tmp_path / "clip.safetensors")
    ]
    assert (results[0] == results[1]).all()
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="bad.safetensors"):
        family_pipe(video=tmp_path / "bad.safetensors")


def test_sync_encoder_is_called_for_pictures_only(family_pipe):
    family_pipe.sync_encoder.register_forward_hook(lambda *args: pytest.fail("called without a picture"))
    family_pipe("rain", num_inference_steps=1)


def test_parts_in_separate_files(release, load, tmp_path):
    name, folder = release
    with pytest.raises(FileNotFoundError, match="synchformer_state_dict.pth"):
        load(synchformer=None)
    if name == "audiox-turbo":
        vae = folder / "vae.ckpt"
        elsewhere = tmp_path / "vae.ckpt"
        vae.rename(elsewhere)
        try:
            with pytest.raises(FileNotFoundError, match="vae.ckpt"):
                load()
            assert load(vae=elsewhere).vae.config.decoder_input_channels == 8
        finally:
            elsewhere.rename(vae)


def test_synchformer_from_its_file(release, fixtures_path, load, tmp_path):
    """Other networks in the file are skipped, and unknown keys are an error."""
    state_dict = load_file(fixtures_path / "synchformer" / "state_dict.safetensors")
    torch.save({**state_dict, "afeat_extractor.x": torch.zeros(1)}, tmp_path / "synchformer.pth")
    encoder = load(synchformer=tmp_path / "synchformer.pth").sync_encoder
    assert (encoder.config.num_attention_heads, encoder.config.num_hidden_layers) == (1, 2)
    assert torch.equal(encoder.class_embed, state_dict["vfeat_extractor.cls_token"])
    torch.save({**state_dict, "vfeat_extractor.more": torch.zeros(1)}, tmp_path / "synchformer.pth")
    with pytest.raises(ValueError, match="vfeat_extractor.more"):
        load(synchformer=tmp_path / "synchformer.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(family_pipe, clip, close, dtype):
    sound = torch.randn(2, 160, generator=seeded()) / 3, 44100
    inputs = {"prompt": "rain", "video": clip, "audio": sound}
    with torch.no_grad():
        expected = family_pipe.encode_conditions(**inputs, generator=seeded())
        family_pipe.to(dtype)
        actual = family_pipe.encode_conditions(**inputs, generator=seeded())
    assert actual.dtype == dtype
    close(actual.float(), expected, 0.1)
    assert np.isfinite(family_pipe(**inputs, num_inference_steps=2, generator=seeded()).audios).all()


def test_waveform_reaches_the_spectrogram_unrounded(release, family_pipe):
    if release[0] != "audiox-maf":
        assert family_pipe.conditioner.config.audio_type == "audio_autoencoder_v2"
        return
    seen = []
    family_pipe.conditioner.audio_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    family_pipe.to(torch.bfloat16)
    sound = torch.randn(2, 160, generator=seeded()) / 3
    family_pipe("rain", audio=(sound, 44100), num_inference_steps=1, guidance_scale=1.0)
    assert torch.equal(seen[0][0, :, :160], sound)


def test_negative_prompt_without_guidance_is_a_warning(family_pipe, caplog):
    family_pipe("rain", negative_prompt="wind", num_inference_steps=1, guidance_scale=1.0)
    assert "Negative prompts have no effect without guidance" in caplog.text
    caplog.clear()
    family_pipe("rain", negative_prompt="wind", num_inference_steps=1, guidance_scale=2.0)
    assert "Negative prompts" not in caplog.text


@torch.no_grad()
def test_black_centre_is_not_no_video(family_pipe):
    frames = torch.zeros(16, 3, 32, 96)
    frames[..., :8] = 1.0
    assert family_pipe.encode_sync(frames).any()


def test_features_of_another_model(family_pipe, tmp_path):
    save_features(tmp_path / "other.safetensors", torch.ones(4, 5, 32), torch.ones(240, 32))
    with pytest.raises(ValueError, match=r"other\.safetensors: video_embeds has the shape \[4, 5, 32\]"):
        family_pipe(video=[tmp_path / "other.safetensors", torch.ones(16, 3, 32, 32)])


def test_transformer_of_the_other_class(release):
    name, folder = release
    files = {"original_config": str(folder / "config.json")}
    right, wrong = AudioXTransformer2DModel, AudioXMMTransformer2DModel
    if name != "audiox-maf":
        right, wrong = wrong, right
    assert type(right.from_single_file(str(folder / "model.ckpt"), **files)) is right
    with pytest.raises(ValueError, match=f"contains an {right.__name__}, not an {wrong.__name__}"):
        wrong.from_single_file(str(folder / "model.ckpt"), **files)
