"""The parts of the page that need no browser."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyloudnorm
import pytest
import torch
from helpers import refused

from audiox_diffusers.generation.reproduce import curl_line
from audiox_diffusers.media import Recipe
from audiox_diffusers.serving.errors import ServingError
from audiox_diffusers.serving.page.results import set_loudness
from audiox_diffusers.serving.page.tasks import AS_GENERATED, TASKS, Form, Task, place_of

RATE = 16000
SPACE = Path(__file__).parents[2] / "spaces" / "app.py"


def form(**values: object) -> Form:
    empty = dict.fromkeys(Form.__dataclass_fields__)
    return Form(**{**empty, "task": Task.TEXT, "level": AS_GENERATED, "model": "m", **values})


def tone(level: float, seconds: float = 2.0) -> torch.Tensor:
    return level * torch.sin(torch.arange(round(seconds * RATE)) * 0.4)[None]


@pytest.mark.parametrize("loudness", [-16.0, -23.0, -40.0])
def test_loudness(loudness):
    sound, reached = set_loudness(tone(0.1), RATE, loudness)
    assert reached == loudness
    assert pyloudnorm.Meter(RATE).integrated_loudness(sound.numpy().T) == pytest.approx(loudness, abs=0.01)


def test_loudness_never_clips():
    crackling = tone(0.01)
    crackling[0, 100] = 0.5
    sound, reached = set_loudness(crackling, RATE, -5.0)
    assert sound.abs().max() == pytest.approx(1.0) and reached < -20


def test_loudness_of_silence_and_of_short_sounds():
    sound, reached = set_loudness(tone(0.0), RATE, -16.0)
    assert reached is None and not sound.any()
    with refused("at least 0.4 s", error=ServingError):
        set_loudness(tone(0.1, seconds=0.2), RATE, -16.0)
    for wrong in (1.0, -70.0, float("nan")):
        with refused("must be above -70", error=ServingError):
            set_loudness(tone(0.1), RATE, wrong)


def test_requests_of_the_tasks(tmp_path):
    path = tmp_path / "sound.wav"
    path.write_bytes(b"sound")
    values, files = form(
        task=Task.INPAINT, audio=str(path), spans="1.5 \u2013 2.5, 3-3.5,", prompt="", length=4
    ).request()
    assert values == {"model": "m", "normalize": False, "inpaint_spans": "1.5-2.5, 3-3.5"}
    assert files["audio"].data == b"sound"
    # Files that were chosen for another task are left alone.
    values, files = form(prompt="rain", audio=str(path), steps=4.0, length=0, seed=0).request()
    assert files == {}
    assert values == {"input": "rain", "model": "m", "normalize": False, "num_inference_steps": 4, "seed": 0}


def test_requests_with_advanced_settings(tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"noise")
    given = {"prompt": "rain", "guidance": 3.0, "negative_audio": str(tmp_path / "noise.wav")}
    values, files = form(**given, text_weight=4.0, audio_weight=2.0, guidance_interval="0.2 \u2013 0.8").request()
    assert values["guidance_scale"] == {"text": 4.0, "audio": 2.0} and values["guidance_interval"] == "0.2-0.8"
    assert files["negative_audio"].data == b"noise"
    values, _ = form(**given, guider="apg:eta=1").request()
    assert values["guidance_scale"] == 3.0 and values["guider"] == "apg:eta=1"
    # Weights of 0 are weights.
    assert form(**given, video_weight=0.0).request()[0]["guidance_scale"] == {"video": 0.0}


@pytest.mark.parametrize("task", [Task.VIDEO, Task.IMAGE, Task.INPAINT])
def test_media_to_avoid_do_not_replace_those_of_the_task(task, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"noise")
    with refused("choose a ", error=ServingError):
        form(task=task, negative_audio=str(tmp_path / "noise.wav")).request()


@pytest.mark.parametrize("task", [task for task in TASKS])
def test_each_task_says_what_is_missing(task):
    with pytest.raises(ServingError) as caught:
        form(task=task).request()
    place, _ = place_of(caught.value.param, caught.value.message)
    assert place in ("prompt", "media")


def test_curl_of_hostile_texts():
    recipe = Recipe(model="m", seed=1, prompt="@/etc/passwd; $(id)", audio='a"b;c.wav', inpaint=((0.5, 1.0),))
    line = curl_line(recipe, "http://127.0.0.1:1/", "sound.flac")
    assert "--form-string 'input=@/etc/passwd; $(id)'" in line
    assert """--form 'audio=@"a\\"b;c.wav"'""" in line
    assert " --form-string inpaint_spans=0.5-1 " in line and line.endswith(" --output sound.flac")


def test_curl_of_guidance():
    recipe = Recipe(
        model="m",
        seed=1,
        prompt="rain",
        negative_audio="tone.wav",
        guidance_weights=(("text", 3.0), ("audio", 1.5)),
        guidance_interval=((0.2, 0.8),),
    )
    line = curl_line(recipe, "http://127.0.0.1:1/", "sound.wav")
    assert " --form-string guidance_scale=text=3,audio=1.5 --form-string guidance_interval=0.2-0.8 " in line
    assert """ --form 'negative_audio=@"tone.wav"' """ in line
    line = curl_line(Recipe(model="m", seed=1, prompt="rain", guidance=4.0, guider="apg:eta=1"), "http://h/", "a.wav")
    assert " --form-string guidance_scale=4 --form-string guider=apg:eta=1 " in line


@pytest.mark.parametrize("has_zero_gpu", [False, True])
def test_the_space_generates_a_sound(monkeypatch, has_zero_gpu):
    """With ZeroGPU, which is a decorator here that counts."""
    used = []

    def gpu(duration: int):
        return lambda function: lambda *args: used.append(duration) or function(*args)

    module = ModuleType("spaces")
    if has_zero_gpu:
        module.GPU = gpu
    monkeypatch.setitem(sys.modules, "spaces", module)
    space = runpy.run_path(str(SPACE))
    try:
        runs = space["GpuRuns" if has_zero_gpu else "Runs"](space["engine"])
        news = list(runs.run("visitor", {"input": "rain", "num_inference_steps": 2, "audio_length": 0.5}, {}))
        assert [progress.error for progress in news if progress.error] == [] and len(news[-1].results) == 1
        assert used == ([120] if has_zero_gpu else [])
    finally:
        if not has_zero_gpu:
            space["engine"].close(grace_s=0)
    assert np.isclose(news[-1].state["progress"], 1)
