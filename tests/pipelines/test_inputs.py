"""What calls and encoders accept, convert or refuse."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from helpers import BAD_VALUES, assert_equal, refused, seeded, tone
from PIL import Image

from audiox_diffusers import (
    AudioXDPMSolverSDEScheduler,
    AudioXFlowMatchScheduler,
    AudioXInpaintPipeline,
    AudioXPipeline,
)
from audiox_diffusers.pipelines import load_features, save_features
from audiox_diffusers.pipelines.inputs import to_waveform

RATE = 44100


@pytest.fixture
def edit(pipe):
    editor = AudioXInpaintPipeline.from_pipe(pipe)
    editor.set_progress_bar_config(disable=True)
    return lambda audio, **kwargs: editor(audio, **{"crossfade_ms": 0, "num_inference_steps": 1, **kwargs})


def encode(pipe, **kwargs):
    with torch.no_grad():
        return pipe.encode_conditions(**kwargs, generator=seeded() if "audio" in kwargs else None)


# Sounds in memory


def test_integer_samples_are_scaled():
    for dtype, samples in (
        (np.int16, [-(2**15), 0, 2**14]),
        (np.int32, [-(2**31), 0, 2**30]),
        (np.uint8, [0, 128, 192]),
    ):
        for given in (np.array(samples, dtype), torch.tensor(samples, dtype=getattr(torch, np.dtype(dtype).name))):
            waveform, rate = to_waveform((given, 8000), 1)
            assert_equal(waveform, torch.tensor([[-1.0, 0.0, 0.5]]))
            assert rate == 8000


def test_the_order_of_scipy_and_gradio():
    """There the rate comes first and channels last."""
    stereo = torch.stack((tone(0.01), -tone(0.01)))
    for first, second in ((stereo, stereo.T), (stereo[:1], stereo[:1].T), (stereo[0], stereo[0])):
        for convert in (torch.Tensor, torch.Tensor.numpy):
            expected, _ = to_waveform((convert(first.clone()), 16000), 2)
            assert_equal(to_waveform((np.int64(16000), convert(second.clone())), 2), (expected, 16000))


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array[:, ::-1][:, ::-1],
        lambda array: np.asfortranarray(array),
        lambda array: array.astype(">f4"),
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: np.frombuffer(array.tobytes(), np.float32).reshape(array.shape),  # read-only
    ],
)
def test_arrays_of_any_layout(pipe, change):
    array = np.stack((tone(0.005, RATE), tone(0.005, RATE, 880.0)))
    assert_equal(encode(pipe, audio=(change(array), RATE)), encode(pipe, audio=(array, RATE)))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (([0.1, "a"], RATE), "not a list of numbers"),
        (("sound.wav", RATE), "must be a tensor or an array, got str"),
        ((np.array(["a"]), RATE), "array of <U1 is not supported"),
        ((np.array([None]), RATE), "array of object is not supported"),
        ((np.ones((100, 2)), RATE), r"\[N, channels\] after the rate"),
        ((RATE, np.ones((2, 100))), r"got \[2, 100\]"),
        ((torch.ones(9, dtype=torch.int64), RATE), "int16, int32 or uint8, got torch.int64"),
        ((torch.ones(9), True), "rate must be a whole number"),
        ((torch.ones(9), 0.5), "rate must be a whole number"),
        ((torch.ones(9), -16000), "rate must be a whole number"),
        ((torch.ones(9), float("nan")), "rate must be a whole number"),
        ((torch.ones(9), "16000"), "rate must be a whole number"),
        ((torch.full((9,), 1e300, dtype=torch.float64), RATE), "NaN or infinite"),
        ((torch.ones(9), RATE, 2), "must be a path or"),
    ],
)
def test_sounds_that_are_refused(pipe, edit, audio, message):
    for call in (
        lambda: pipe(audio=audio),
        lambda: pipe.encode_audio(audio),
        lambda: edit(audio, strength=0.5),
        lambda: edit([audio], extend_by_s=0.01),
    ):
        with pytest.raises(ValueError, match="`audio`.*" + message):
            call()


def test_pcm_is_edited_sample_for_sample(edit):
    pcm = (np.stack((tone(0.01, RATE), tone(0.01, RATE, 880.0))) * 2**15).astype(np.int16)
    result = edit((RATE, pcm.T), prompt="rain", inpaint_spans=[(0.004, 0.005)]).audios[0]
    assert np.array_equal(result[:, :170] * 2**15, pcm[:, :170])


# Pictures in memory


def test_grey_pictures(pipe):
    grey = torch.randint(1, 256, (20, 30), dtype=torch.uint8, generator=seeded())
    expected = pipe.encode_video(image=grey.expand(3, -1, -1))
    for image in (grey, grey[None], grey.numpy(), grey.numpy()[..., None], grey / 255, Image.fromarray(grey.numpy())):
        torch.testing.assert_close(pipe.encode_video(image=image), expected)
    video = torch.stack((grey, grey.flip(0)))[:, None]
    expected = pipe.encode_video(video.expand(-1, 3, -1, -1))
    for given in (video, video.permute(0, 2, 3, 1).numpy(), list(video[:, 0].numpy())):
        torch.testing.assert_close(pipe.encode_video(given), expected)


def test_transparent_frames_are_laid_over_black(pipe):
    frame = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    frame.paste((255, 0, 0, 255), (4, 4, 9, 9))
    flat = Image.new("RGB", (16, 16))
    flat.paste((255, 0, 0), (4, 4, 9, 9))
    assert_equal(pipe.encode_video([frame, frame]), pipe.encode_video([flat, flat]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones((8, 8), bool), "must be uint8"),
        (np.ones((8, 8, 2), np.uint8), "must have the shape"),
        (np.ones((8, 8), np.uint16), "must be uint8|not supported"),
        (np.ones(8, np.uint8), "must have the shape"),
        ([np.ones((8, 8, 3), np.uint8)[None].repeat(2, 0)], "must be one picture, got 2"),
        (b"picture.png", "must be a path"),
    ],
)
def test_pictures_that_are_refused(pipe, image, message):
    with pytest.raises(ValueError, match="`image`.*" + message):
        pipe(image=image, num_inference_steps=1)


# Numbers that are not finite


def bad(value, *shape):
    tensor = torch.zeros(shape)
    tensor.flatten()[-1] = value
    return tensor


@pytest.mark.parametrize("value", BAD_VALUES)
def test_what_is_not_finite_is_named(pipe, edit, value, tmp_path):
    sound = {"audio": (torch.ones(2, 100) / 2, RATE), "strength": 1}
    text, context = bad(value, 1, 10, 64), bad(value, 1, 36, 64)
    calls = {
        "prompt_embeds": [
            lambda: pipe(prompt_embeds=text),
            lambda: pipe.encode_prompt(prompt_embeds=text),
            lambda: pipe.encode_conditions(prompt_embeds=text),
            lambda: edit(prompt_embeds=text, **sound),
        ],
        "negative_prompt_embeds": [
            lambda: pipe("a", negative_prompt_embeds=text),
            lambda: pipe.encode_prompt(negative_prompt_embeds=text),
            lambda: edit(negative_prompt_embeds=text, **sound),
        ],
        "condition_embeds": [lambda: pipe(condition_embeds=context)],
        "negative_condition_embeds": [lambda: pipe("a", negative_condition_embeds=context)],
        "latents": [
            lambda: pipe("a", latents=bad(value, 1, 8, 24)),
            lambda: pipe.prepare_latents(1, "cpu", latents=bad(value, 1, 8, 24)),
            lambda: pipe.stream_latents(bad(value, 1, 8, 24), 100),
        ],
        "waveforms": [lambda: pipe.encode_waveforms(bad(value, 1, 2, 160))],
        "frames": [lambda: pipe.embed_frames(bad(value, 1, 3, 32, 32))],
        "video_embeds": [lambda: save_features(tmp_path / "x.safetensors", bad(value, 4, 5, 64), None)],
        "sync_embeds": [lambda: save_features(tmp_path / "x.safetensors", torch.ones(4, 5, 64), bad(value, 2, 64))],
        "audio": [lambda: pipe(audio=(bad(value, 2, 100), RATE)), lambda: edit((bad(value, 2, 9), RATE), strength=1)],
        "image": [lambda: pipe(image=bad(value, 3, 8, 8)), lambda: pipe.encode_video(image=bad(value, 3, 8, 8))],
        "video": [lambda: pipe(video=bad(value, 4, 3, 8, 8))],
        "mask": [lambda: edit(sound["audio"], mask=bad(value, 5))],
        "guidance_scale": [lambda: pipe("a", guidance_scale=value), lambda: edit(guidance_scale=value, **sound)],
        "guidance_rescale": [lambda: pipe("a", guidance_rescale=value)],
        "audio_length_in_s": [lambda: pipe("a", audio_length_in_s=value)],
        "window_overlap_in_s": [lambda: pipe("a", window_overlap_in_s=value)],
        "crossfade_ms": [lambda: edit(crossfade_ms=value, **sound)],
        "attention_kwargs": [lambda: pipe("a", attention_kwargs={"scale": value})],
    }
    for name, named in calls.items():
        for call in named:
            with refused(f"`{name}`"):
                call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", BAD_VALUES)
def test_features_that_are_not_finite(pipe, edit, value, tmp_path, monkeypatch):
    path = tmp_path / "clip.safetensors"
    monkeypatch.setattr("audiox_diffusers.pipelines.features.check_tensor", lambda *args: None)
    save_features(path, bad(value, 4, 5, 64), None)
    for call in (
        lambda: load_features(path, "video_embeds"),
        lambda: pipe(video=path, num_inference_steps=1),
        lambda: edit((torch.ones(2, 9), RATE), video=path, strength=1),
    ):
        with refused("clip.safetensors: video_embeds holds NaN or infinite values"):
            call()


@pytest.mark.parametrize("name", ["sigma_min", "sigma_max", "eta"])
@pytest.mark.parametrize("value", [*BAD_VALUES, 1e30, "1"])
def test_configs_of_schedulers(name, value, tmp_path):
    """JSON as Python writes it has NaN and Infinity."""
    (tmp_path / "scheduler_config.json").write_text(json.dumps({name: value}))
    with refused(f"`{name}`"):
        AudioXDPMSolverSDEScheduler.from_pretrained(tmp_path)


def test_latents_that_overflow_are_an_error(pipe):
    huge = torch.full((1, 36, 64), 3e38)
    with refused("Denoising gave NaN or infinite latents", "torch.float32"):
        pipe(condition_embeds=huge, num_inference_steps=1)


# Numbers that are far too large


@pytest.mark.parametrize("value", [10**9, 10**30])
def test_huge_numbers_are_refused_before_anything_is_allocated(pipe, edit, value):
    sound = {"audio": (torch.ones(2, 100) / 2, RATE)}
    calls = {
        "num_inference_steps": [lambda: pipe("a", num_inference_steps=value)],
        "audio_length_in_s": [
            lambda: pipe("a", audio_length_in_s=value),
            lambda: pipe("a", audio_length_in_s=float(value), output_type="stream"),
            lambda: pipe([(0, value, "a")]),
        ],
        "num_waveforms_per_prompt": [lambda: pipe("a", num_waveforms_per_prompt=value)],
        "extend_by_s": [lambda: edit(**sound, extend_by_s=value), lambda: edit(**sound, extend_by_s=-value)],
        "num_refinements": [lambda: edit(**sound, strength=1, num_refinements=value)],
        "guidance_scale": [lambda: pipe("a", guidance_scale=value)],
        "num_train_timesteps": [
            lambda: AudioXDPMSolverSDEScheduler(num_train_timesteps=value),
            lambda: AudioXDPMSolverSDEScheduler.from_config({"num_train_timesteps": value}),
        ],
    }
    for name, named in calls.items():
        for call in named:
            with refused(f"`{name}`"):
                call()


def test_a_day_is_for_all_sounds_of_a_call(pipe):
    with refused("`audio_length_in_s`: a call handles at most 86400 s of sound, got 1000 x 100 s"):
        pipe("a", audio_length_in_s=100, num_waveforms_per_prompt=1000)


# Other arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"generator": 42}, r"`generator` must be a torch.Generator, such as .*got 42"),
        ({"generator": [42]}, "`generator` must be a torch.Generator"),
        ({"generator": (seeded(),)}, "`generator` must be a torch.Generator"),
        ({"generator": np.random.default_rng(0)}, "`generator` must be a torch.Generator"),
        ({"num_inference_steps": True}, "`num_inference_steps` must be a whole number, 1 to 10000, got True"),
        ({"num_inference_steps": "5"}, "`num_inference_steps` must be a whole number"),
        ({"guidance_scale": True}, "`guidance_scale` must be a number"),
        ({"num_waveforms_per_prompt": False}, "`num_waveforms_per_prompt` must be a whole number"),
        ({"callback_on_step_end": 5}, "`callback_on_step_end` must be a function"),
        ({"callback_on_step_end": lambda *args: 5}, "`callback_on_step_end` must return a dict of tensors or None"),
        ({"callback_on_step_end": lambda *args: {"latents": 5}}, "must return `latents` in the shape"),
        ({"callback_on_step_end": lambda *args: {"latents": torch.ones(1)}}, "must return `latents` in the shape"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "`callback_on_step_end_tensor_inputs` must be a list"),
        ({"callback_on_step_end_tensor_inputs": None}, "`callback_on_step_end_tensor_inputs` must be a list"),
        ({"attention_kwargs": 0.5}, "`attention_kwargs` must be a dict"),
        ({"attention_kwargs": {"scale": "big"}}, "`attention_kwargs` must be a dict"),
        ({"output_type": None}, "`output_type` must be one of"),
        ({"prompt": ("a", "b")}, "`prompt` must be a string or a list"),
        ({"prompt": "\ud800"}, "`prompt` is not valid Unicode"),
        ({"prompt": [(0, 10, "\ud800")]}, "`prompt` is not valid Unicode"),
        ({"negative_prompt": "\ud800"}, "`negative_prompt` is not valid Unicode"),
        ({"negative_prompt": ["a", "b"]}, "`negative_prompt` has 2 negative prompts, for 1 prompts"),
        ({"latents": np.zeros((1, 8, 24))}, "`latents` must be a torch.Tensor, got ndarray"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 10, 64))}, "`prompt_embeds` must be a torch.Tensor"),
        ({"prompt": None, "prompt_embeds": torch.ones(1, 10, 64).int()}, "`prompt_embeds` must be floating point"),
        ({"prompt": None, "condition_embeds": torch.zeros(0, 36, 64)}, "`condition_embeds` must have the shape"),
        ({"prompt": None, "condition_embeds": torch.tensor(1.0)}, "`condition_embeds` must have the shape"),
    ],
)
def test_arguments_that_are_refused(pipe, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a", "num_inference_steps": 1, **kwargs})


def test_a_callback_may_return_nothing(pipe):
    kwargs = {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipe("a", generator=seeded(), **kwargs).audios
    steps = []
    watched = pipe("a", generator=seeded(), callback_on_step_end=lambda p, i, t, k: steps.append(i), **kwargs).audios
    torch.testing.assert_close(watched, expected)
    assert steps == [0, 1]


@pytest.mark.parametrize("name", ["vae", "conditioner", "transformer", "scheduler"])
def test_a_missing_component_is_named(pipe, name):
    pipe = AudioXPipeline(**{**pipe.components, name: None})
    for call in (pipe, AudioXInpaintPipeline.from_pipe(pipe)):
        with refused(f"The pipeline has no `{name}`"):
            call(prompt="a", audio=(torch.ones(2, 9), RATE))
    if name == "conditioner":
        for encoder in (pipe.encode_video, pipe.encode_sync, pipe.encode_audio, pipe.encode_conditions):
            with refused("The pipeline has no `conditioner`"):
                encoder()


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        EDMEulerScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        HeunDiscreteScheduler(),
    ],
)
def test_schedulers_with_other_conventions(pipe, scheduler):
    pipe.scheduler = scheduler
    for call in (pipe, AudioXInpaintPipeline.from_pipe(pipe)):
        with refused(f"`scheduler` is {type(scheduler).__name__}", "AudioXDPMSolverSDEScheduler", "AudioXFlowMatch"):
            call(prompt="a", audio=(torch.ones(2, 9), RATE))


def test_the_scheduler_of_another_objective_is_a_warning(pipe, caplog):
    kwargs = {"num_inference_steps": 1, "guidance_scale": 1.0}
    pipe("a", **kwargs)
    assert "scheduler" not in caplog.text
    pipe.scheduler = AudioXFlowMatchScheduler.from_config(pipe.scheduler.config)
    pipe("a", **kwargs)
    assert "AudioXFlowMatchScheduler, and the pipeline was created with AudioXDPMSolverSDEScheduler" in caplog.text


def test_a_subclass_of_a_scheduler_fits(pipe):
    class Own(AudioXDPMSolverSDEScheduler):
        pass

    expected = pipe("a", num_inference_steps=2, generator=seeded()).audios
    pipe.scheduler = Own.from_config(pipe.scheduler.config)
    assert_equal(pipe("a", num_inference_steps=2, generator=seeded()).audios, expected)
