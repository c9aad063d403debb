"""The scripts that audiox-tiny is made with."""

import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import load_script

from audiox_diffusers import AudioXAutoencoderOobleck, AudioXPipeline
from audiox_diffusers.bench.items import BENCH_SEED
from audiox_diffusers.media import MediaBytes, load_audio, load_image, load_video
from audiox_diffusers.scenes import Event, Scene, write_scenes

FOLDER = Path(__file__).resolve().parents[2] / "training" / "audiox_tiny"


@pytest.fixture(autouse=True, scope="module")
def scripts_find_each_other():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(FOLDER)
        yield


def run(script, monkeypatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    script.main()


@pytest.fixture(scope="module")
def make_data():
    return load_script(FOLDER / "make_data.py")


@pytest.fixture(scope="module")
def make_vae():
    return load_script(FOLDER / "make_vae.py")


@pytest.fixture(scope="module")
def make_model():
    return load_script(FOLDER / "make_model.py")


@pytest.fixture(scope="module")
def data(make_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(make_data, monkeypatch, folder / "data.parquet", "--count", 20)
    return folder / "data.parquet"


def test_data_holds_sound_picture_and_words_of_the_same_scene(data):
    rows = pq.read_table(data).to_pylist()
    assert len(rows) == 20
    scenes = [row for row in rows if row["task"] is None]
    assert len(scenes) == 18 and len([row for row in scenes if row["caption"] == "silence"]) == 1
    for row in scenes:
        sound, _ = load_audio(MediaBytes(row["audio"], "a.flac"), 16000, 1)
        assert sound.shape == (1, 64000)
        assert load_video(MediaBytes(row["video"], "v.mp4"), 20.0, size=(32, 32)).shape == (80, 3, 32, 32)
        if row["caption"] == "silence":
            assert row["image"] is None and 1e-3 < sound.abs().max() < 0.02
        else:
            assert load_image(MediaBytes(row["image"], "i.png")).shape == (3, 96, 96)
            assert sound.abs().max() > 0.3


def test_what_goes_on_has_the_sound_before_it(data):
    rows = [row for row in pq.read_table(data).to_pylist() if row["task"] is not None]
    assert {row["task"] for row in rows} == {"completion"} and len(rows) == 2
    for row in rows:
        assert row["caption"] is None and row["video"] is None and row["image"] is None
        for name in ("audio", "audio_prompt"):
            assert load_audio(MediaBytes(row[name], "a.flac"), 16000, 1)[0].shape == (1, 64000)


def test_data_depends_on_the_seed_alone_and_is_never_the_benchs(make_data, data, tmp_path, monkeypatch, capsys):
    run(make_data, monkeypatch, tmp_path / "again.parquet", "--count", 20)
    first, again = pq.read_table(data), pq.read_table(tmp_path / "again.parquet")
    assert again.drop(["video"]).equals(first.drop(["video"]))
    # Encoders of video round as the memory that they are given lies.
    for video, same in zip(first["video"].to_pylist(), again["video"].to_pylist(), strict=True):
        if video is not None:
            frames, same = (load_video(MediaBytes(data, "v.mp4"), 20.0, size=(32, 32)) for data in (video, same))
            torch.testing.assert_close(frames, same, rtol=0, atol=0.15)
    with pytest.raises(SystemExit):
        run(make_data, monkeypatch, tmp_path / "bench.parquet", "--seed", BENCH_SEED + 2)
    assert "--seed" in capsys.readouterr().err and not (tmp_path / "bench.parquet").exists()


def test_band_levels_of_a_sine(make_vae):
    sine = 0.2 * torch.sin(2 * math.pi * 1000 * torch.arange(6400) / 16000)[None, None]
    levels = make_vae.band_levels(sine)[0, :, 2:-2]
    assert levels.shape == (80, 36)
    torch.testing.assert_close(levels[9], torch.full((36,), math.log(0.201)), rtol=0, atol=0.01)
    assert levels[12:].max() < math.log(0.01)


def test_components_are_uncorrelated_and_of_unit_mean_square(make_vae):
    sounds = [torch.randn(1, 24000, generator=torch.Generator().manual_seed(seed)) * 0.1 for seed in range(4)]
    components = make_vae.find_components(sounds, channels=8)
    segments = make_vae.draw_segments(sounds, make_vae.SEGMENT * 640, make_vae.FITTED, 0, -2)
    latents = make_vae.latents_of(segments, components)
    assert latents.shape == (600, 8, 32)
    covariance = torch.cov(latents.transpose(0, 1).flatten(1))
    assert covariance.diagonal().mean().item() == pytest.approx(1, rel=1e-2)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-2


@pytest.mark.slow
def test_the_bank_of_sines_plays_what_it_is_told(make_vae):
    vae = make_vae.create_vae()
    sines = vae.decoder.block[-1].conv_t1
    amplitudes = torch.zeros(1, sines.in_channels, 40)
    amplitudes[0, 9] = 1
    sound = sines(amplitudes)[:, :1]
    levels = make_vae.band_levels(sound)[0, :, 4:-4]
    torch.testing.assert_close(levels[9], torch.full((32,), math.log(0.301)), rtol=0, atol=0.02)
    assert levels[12:].max() < math.log(0.01)


@pytest.mark.slow
def test_a_model_is_made_of_halves_and_encoders(make_vae, make_model, data, tmp_path, monkeypatch):
    scenes = write_scenes(tmp_path / "scenes", 3)
    monkeypatch.setattr(make_vae, "FITTED", 8)
    for half in ("encoder", "decoder", "both"):
        run(make_vae, monkeypatch, tmp_path / "vae", "--dataset", scenes, "--half", half, "--steps", 2)
    for half in ("encoder", "decoder", "both"):
        lines = [json.loads(line) for line in (tmp_path / "vae" / half / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2] and "held_out" in lines[1]
    vae = AudioXAutoencoderOobleck.from_pretrained(tmp_path / "vae" / "both" / "vae")
    posterior = vae.encode(torch.zeros(1, 1, 6400)).latent_dist
    torch.testing.assert_close(posterior.std, torch.full((1, 32, 10), make_vae.SPREAD), rtol=0, atol=1e-3)

    options = ("--text_steps", 2, "--image_scenes", 2, "--image_steps", 2)
    run(
        make_model,
        monkeypatch,
        tmp_path / "base",
        "--data",
        data,
        "--vae",
        tmp_path / "vae" / "both" / "vae",
        *options,
    )
    pipe = AudioXPipeline.from_pretrained(tmp_path / "base")
    scene = Scene([Event("bell", 0.5, 1.0)], 4.0, 0)
    frames = scene.frames(20)
    audio = pipe("Two bell strikes", video=frames, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert audio.audios.shape == (1, 1, 64000)


def test_phrases_and_their_tokens(make_model):
    events = [Event("bell", 0.1, 0.5), Event("bell", 1.0, 0.5), Event("rain", 2.0, 1.0)]
    scene = Scene(events, 4.0, 0)
    bell, rain = make_model.CLASSES.index("bell"), make_model.CLASSES.index("rain")
    assert make_model.phrases(scene) == [(bell, 2, 0, 3), (rain, 1, 2, 3)]
    tokenizer = make_model.train_tokenizer([scene.caption(), "a siren"])
    tokens, mask, targets = make_model.token_targets(tokenizer, [scene])
    assert tokens.shape == mask.shape == (1, 40) and targets.shape == (1, 40, 4)
    told = targets[0][mask[0].bool()]
    # What ends a text has no place in it, and tells of its beginning.
    first, last = torch.tensor([bell, 2, 0, 3]), torch.tensor([rain, 1, 2, 3])
    assert torch.equal(told[0], first) and torch.equal(told[-2], last) and torch.equal(told[-1], first)
    assert (targets[0][~mask[0].bool()] == -100).all()
    assert tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == "two bell strikes, then rain"


def position_error(transformer) -> float:
    """How many frames off a linear probe is that reads the place of a frame from what the fourth block is given."""
    caught = []
    hook = transformer.transformer_blocks[3].register_forward_pre_hook(
        lambda block, args: caught.append(args[0][:, 1:])
    )
    noise = torch.randn(32, 32, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        transformer(noise, torch.rand(32, generator=torch.Generator().manual_seed(1)), torch.zeros(32, 1, 160))
    hook.remove()
    states = torch.nn.functional.layer_norm(caught[0], (192,))
    places = torch.arange(100.0).expand(32, -1)
    features = torch.cat((states, torch.ones(32, 100, 1)), dim=2)
    probe = torch.linalg.lstsq(features[:24].flatten(0, 1), places[:24].reshape(-1, 1)).solution
    return (features[24:] @ probe - places[24:, :, None]).abs().mean().item()


def test_frames_know_where_they_are(make_model):
    torch.manual_seed(0)
    transformer = make_model.create_transformer(100, 32)
    assert position_error(transformer) > 15
    make_model.build_in_positions(transformer)
    assert position_error(transformer) < 6


def attention_to_own_frame(pipe, block: int) -> float:
    """How much of the first head's attention, from latent frames to tokens of the video, is at most 0.2 s away."""
    attn, caught = pipe.transformer.transformer_blocks[block].attn2, {}
    hooks = [
        getattr(attn, name).register_forward_hook(lambda _, __, output, name=name: caught.update({name: output}))
        for name in ("to_q", "to_k")
    ]
    frames = Scene([Event("bell", 0.5, 1.0), Event("drum", 2.0, 0.5)], 4.0, 0).frames(20)
    noise = torch.randn(1, 32, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipe.transformer(noise, torch.tensor([0.9]), pipe.encode_conditions(video=frames))
    for hook in hooks:
        hook.remove()
    queries, keys = caught["to_q"][0, 1:, : attn.head_dim], caught["to_k"][0, :160, : attn.head_dim]
    attention = (queries @ keys.T / math.sqrt(attn.head_dim)).softmax(dim=1)
    away = ((torch.arange(100)[:, None] + 0.5) / 25 - torch.arange(160) // 2 / 20).abs()
    return (attention * (away < 0.2)).sum(dim=1).mean().item()


@pytest.fixture(scope="module")
def untrained(make_model):
    torch.manual_seed(0)
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    return make_model.assemble(pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.image_encoder)


def test_heads_look_at_the_frame_of_their_time(untrained):
    assert min(attention_to_own_frame(untrained, block) for block in (2, 3, 4)) > 0.9
    assert attention_to_own_frame(untrained, 5) < 0.3


def test_the_model_of_the_package_still_does():
    pipe = AudioXPipeline.from_pretrained("audiox-tiny")
    assert min(attention_to_own_frame(pipe, block) for block in (2, 3, 4)) > 0.9


@pytest.mark.slow
def test_positions_are_held_while_the_rest_is_trained(untrained, data, tmp_path, monkeypatch):
    untrained.save_pretrained(tmp_path / "base")
    options = ["--pretrained_model_name_or_path", tmp_path / "base", "--dataset", data]
    options += ["--output_dir", tmp_path / "out"]
    options += ["--train_batch_size", 4, "--max_train_steps", 3, "--dataloader_num_workers", 0]
    options += ["--lr_warmup_steps", 0, "--adam_weight_decay", 0, "--learning_rate", "1e-2"]
    options += ["--task_weights", "video=4"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
    train = load_script(FOLDER / "train.py")
    train.main(method=train.FrozenPositions)
    trained = AudioXPipeline.from_pretrained(tmp_path / "out")

    before, after = untrained.transformer.state_dict(), trained.transformer.state_dict()
    here = load_script(FOLDER / "positions.py").HERE
    for name in ("proj_in.weight", "transformer_blocks.0.ff.net.2.bias", "transformer_blocks.3.attn2.to_out.0.weight"):
        assert torch.equal(after[name][here:], before[name][here:])
        assert not torch.equal(after[name][:here], before[name][:here])
    for name in ("to_q", "to_k"):
        key = f"transformer_blocks.3.attn2.{name}.weight"
        assert torch.equal(after[key][:48], before[key][:48]) and not torch.equal(after[key][48:], before[key][48:])
    assert position_error(trained.transformer) < 10
