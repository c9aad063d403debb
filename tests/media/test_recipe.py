"""Recipes in the metadata of files."""

import json

import av
import numpy as np
import pytest
from helpers import refused

from audiox_diffusers.media import MediaBytes, MediaError, Recipe, load_audio, read_recipe, save_audio, save_video
from audiox_diffusers.media.recipe import MARK

TONE = 0.5 * np.sin(np.arange(4800) * 0.1, dtype=np.float32)
RECIPE = Recipe(
    model="audiox-tiny",
    seed=2**64 - 1,
    prompt="рейн \N{CLOUD WITH RAIN} \"quoted\" \\ 'text'\nnew line; a=b #c \x1b[31m",
    negative_prompt="-x",
    video="clip.mp4",
    image="a picture.png",
    audio="sound.wav",
    length=1.1,
    inpaint=((0.5, 1.0), (2, 3.25)),
    extend=-2.0,
    strength=0.1,
    crossfade=0,
    steps=25,
    guidance=-1.5,
    guidance_rescale=0.0,
    guidance_weights=(("text", 3.0), ("video", -1)),
    guidance_interval=((0.2, 0.8),),
    audio_padding="left",
    window_overlap=0.5,
    window_batch=2,
    normalize=True,
    dtype="bfloat16",
    lora=(("style", 0.5),),
    loudness=-16.0,
)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"])
def test_recipe_in_every_sound_format(tmp_path, suffix):
    path = tmp_path / f"sound{suffix}"
    save_audio(path, TONE, 48000, recipe=RECIPE)
    save_audio(tmp_path / f"plain{suffix}", TONE, 48000)
    assert read_recipe(path) == read_recipe(MediaBytes(path.read_bytes(), path.name)) == RECIPE
    assert read_recipe(tmp_path / f"plain{suffix}") is None
    assert (load_audio(path)[0] == load_audio(tmp_path / f"plain{suffix}")[0]).all()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_recipe_in_every_video_format(tmp_path, suffix):
    frames = np.zeros((5, 16, 16, 3), dtype=np.uint8)
    save_video(tmp_path / f"film{suffix}", frames, TONE, 48000, fps=10, recipe=RECIPE)
    assert read_recipe(tmp_path / f"film{suffix}") == RECIPE
    save_video(tmp_path / f"copy{suffix}", tmp_path / f"film{suffix}", TONE, 48000)
    assert read_recipe(tmp_path / f"copy{suffix}") is None


def test_title_of_a_file(tmp_path):
    save_audio(tmp_path / "sound.flac", TONE, 48000, recipe=Recipe(model="m", seed=0, prompt="rain\x07 " + 200 * "x"))
    with av.open(str(tmp_path / "sound.flac")) as container:
        assert {name.lower(): value for name, value in container.metadata.items()}[
            "title"
        ] == "rain\\x07 " + 91 * "x" + "..."


def test_recipe_that_is_too_long_is_left_out(tmp_path, caplog):
    save_audio(tmp_path / "sound.mov.wav", TONE, 48000, recipe=Recipe(model="m", seed=0, prompt=60_000 * "x"))
    assert read_recipe(tmp_path / "sound.mov.wav") is None and "too long" in caplog.text
    assert load_audio(tmp_path / "sound.mov.wav")[0].shape == (1, 4800)


VALID = {MARK: "0.1.0", "model": "m", "seed": 1}


@pytest.mark.parametrize("text", ["", "a comment", "{}", "[]", json.dumps({"model": "m", "seed": 1}), f'["{MARK}"]'])
def test_comments_of_other_programs(text):
    assert Recipe.from_json(text) is None


@pytest.mark.parametrize(
    "values",
    [
        {"seed": -1},
        {"seed": True},
        {"seed": 2**64},
        {"seed": None},
        {"steps": 1e300},
        {"steps": "4"},
        {"guidance": float("nan")},
        {"length": float("inf")},
        {"length": -1},
        {"prompt": ["rain"]},
        {"prompt": "\ud800"},
        {"model": 300 * "m"},
        {"model": "a\0b"},
        {"video": ".."},
        {"audio": "/"},
        {"normalize": 1},
        {"dtype": "float8'; import os"},
        {"inpaint": [[1]]},
        {"inpaint": [["a", "b"]]},
        {"lora": {"style": 1}},
        {"audio_padding": "up"},
        {MARK: 1},
    ],
)
def test_wrong_values_are_refused(values):
    with refused("the recipe has"):
        Recipe.from_json(json.dumps({**VALID, **values}))


@pytest.mark.parametrize(
    "text", [f'{{"{MARK}": ', f'{{"{MARK}": ' + 50_000 * "[", f'{{"{MARK}": "' + 70_000 * "x" + '"}']
)
def test_damaged_recipes(tmp_path, text):
    with refused("the recipe"):
        Recipe.from_json(text)


def test_unknown_keys_of_later_versions_are_ignored():
    assert Recipe.from_json(json.dumps({**VALID, "tempo": 120})) == Recipe(model="m", seed=1, version="0.1.0")


@pytest.mark.parametrize("name", ["/private/secret/clip.mp4", "..\\..\\clip.mp4", "../../clip.mp4"])
def test_folders_of_input_files_are_dropped(name):
    assert Recipe.from_json(json.dumps({**VALID, "video": name})).video == "clip.mp4"


def test_damaged_recipe_in_a_file(tmp_path):
    with av.open(str(tmp_path / "sound.flac"), "w") as target:
        target.metadata["comment"] = json.dumps({**VALID, "seed": "1"})
        stream = target.add_stream("flac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 480), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    with refused("sound.flac: the recipe has a wrong seed: '1'", error=MediaError):
        read_recipe(tmp_path / "sound.flac")
