"""Calls that overlap on one pipeline or on shared components do not mix."""

import threading

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from helpers import assert_equal, refused, seeded
from peft import LoraConfig

from audiox_diffusers import AudioXInpaintPipeline, AudioXPipeline

RATE = 44100
STEPS = 6
SOUND = torch.rand(2, 300, generator=seeded(3)) - 0.5


def generate(pipe, prompt="rain", seed=0, callback=None, **kwargs):
    kwargs = {"num_inference_steps": STEPS, "output_type": "pt", **kwargs}
    return pipe(prompt, generator=seeded(seed), callback_on_step_end=callback, **kwargs).audios


def edit(pipe, seed=1, callback=None):
    return pipe(
        (SOUND, RATE), "wind", inpaint_spans=[(0.002, 0.003)], num_inference_steps=STEPS, generator=seeded(seed),
        crossfade_ms=0, output_type="pt", callback_on_step_end=callback,
    ).audios  # fmt: skip


def in_thread(function, *args, **kwargs):
    """Return the result of a function that runs in a thread of its own, or raise its error."""
    result = {}

    def run():
        try:
            result["value"] = function(*args, **kwargs)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "error" in result:
        raise result["error"]
    return result["value"]


def during(step, function):
    """Return a callback that calls a function in the middle of a call, and a list with its result."""
    results = []

    def callback(pipe, i, t, tensors):
        if i == step:
            results.append(function())

    return callback, results


def other_call(pipe, kind):
    if kind == "the same pipeline":
        return lambda callback=None: generate(pipe, "wind", 1, callback)
    if kind == "a pipeline with the same components":
        other = AudioXPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        return lambda callback=None: generate(other, "wind", 1, callback)
    if kind == "an editor with the same components":
        editor = AudioXInpaintPipeline.from_pipe(pipe)
        editor.set_progress_bar_config(disable=True)
        return lambda callback=None: edit(editor, callback=callback)
    other = AudioXPipeline.from_pipe(pipe, scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config))
    other.set_progress_bar_config(disable=True)
    return lambda callback=None: generate(other, "wind", 1, callback)


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        "the same pipeline",
        "a pipeline with the same components",
        "an editor with the same components",
        "another scheduler",
    ],
)
def test_a_call_inside_another_one(pipe, kind, threaded):
    """In a thread or in a callback itself: both give what they give alone."""
    second = other_call(pipe, kind)
    expected = generate(pipe), second()
    scheduler = pipe.scheduler
    callback, results = during(2, lambda: in_thread(second) if threaded else second())
    assert_equal(generate(pipe, callback=callback), expected[0])
    assert_equal(results[0], expected[1])
    assert pipe.scheduler is scheduler and pipe.num_timesteps == STEPS
    assert_equal(generate(pipe), expected[0])


def test_calls_in_step(pipe):
    """Four threads that wait for each other after each step."""
    expected = [generate(pipe, seed=seed) for seed in range(4)]
    barrier = threading.Barrier(4, timeout=60)
    results = [None] * 4

    def run(seed):
        results[seed] = generate(pipe, seed=seed, callback=lambda *args: [barrier.wait(), {}][1])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        assert_equal(result, wanted)


def test_each_callback_changes_its_own_call(pipe):
    """Guidance, interruption and the current time belong to the pipeline that a callback is given."""
    seen = []

    def stop(inner, i, t, tensors):
        seen.append((inner is pipe, inner.num_timesteps, inner.current_timestep.item() == t.item()))
        inner._guidance_scale = 1.0
        inner._interrupt = True

    callback, _ = during(1, lambda: generate(pipe, "wind", 1, stop, num_inference_steps=3))
    assert_equal(generate(pipe, callback=callback), generate(pipe))
    assert seen == [(False, 3, True)]


def test_texts_are_encoded_in_many_threads(pipe):
    texts = ["a", "rain on a roof", "bell"] * 5
    expected = [pipe.encode_prompt(text)[0] for text in texts]
    results = [None] * len(texts)

    def run(i):
        results[i] = pipe.encode_prompt(texts[i])[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted)


def add_cache(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))


def add_offloading(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def add_casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


@pytest.mark.parametrize("add", [add_cache, add_offloading, add_casting])
def test_hooks_serve_one_call_at_a_time(pipe, add):
    add(pipe)
    expected = generate(pipe)

    def second():
        with refused("Another call is using the networks of this pipeline", "hooks", error=RuntimeError):
            generate(pipe, "wind", 1)

    callback, results = during(2, second)
    assert_equal(generate(pipe, callback=callback), generate(pipe, callback=lambda *args: None))
    assert len(results) == 1
    assert_equal(generate(pipe), expected)


@pytest.mark.parametrize("scaled_first", [True, False])
def test_a_lora_scale_serves_one_call_at_a_time(pipe, scaled_first):
    pipe.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
    scales = {"attention_kwargs": {"scale": 0.5}}
    first, second = (scales, {}) if scaled_first else ({}, scales)

    def call():
        with refused("Another call", "scales their LoRA layers", error=RuntimeError):
            generate(pipe, **second)

    callback, results = during(0, call)
    generate(pipe, callback=callback, **first)
    assert len(results) == 1
    generate(pipe, **second)


def test_a_failed_call_is_over(pipe):
    def fail(*args):
        raise KeyError("a mistake of the user")

    expected = generate(pipe)
    for _ in range(2):
        with pytest.raises(KeyError):
            generate(pipe, callback=fail)
    assert pipe.current_timestep is None
    seen = []
    assert_equal(generate(pipe, callback=lambda used, *args: seen.append(used)), expected)
    assert seen == [pipe] * STEPS
