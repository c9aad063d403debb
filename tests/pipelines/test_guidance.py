"""Guidance: intervals, weights by modality, the guiders of diffusers, and negative video and audio."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
)
from helpers import normal, refused, seeded
from PIL import Image

from audiox_diffusers import AudioXFlowMatchScheduler, AudioXInpaintPipeline

STEPS = 3


@pytest.fixture
def film():
    return torch.rand(5, 3, 32, 32, generator=seeded(3))


@pytest.fixture
def generate(pipe):
    def run(prompt="a dog", **kwargs):
        kwargs = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(), **kwargs}
        return pipe(prompt, **{"audio_length_in_s": 0.002, **kwargs}).audios

    return run


@pytest.fixture
def calls(pipe, monkeypatch):
    """Record the number of rows of each forward pass."""
    rows, forward = [], pipe.transformer.forward

    def record(hidden_states, *args, **kwargs):
        rows.append(len(hidden_states))
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", record)
    return rows


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare to float error, which differs with the size of a batch."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# Interval


def test_guidance_outside_of_its_interval_takes_one_pass(generate, calls, pipe):
    generate(guidance_scale=3.0, guidance_interval=(0.5, 0.9), num_inference_steps=8)
    times = pipe.scheduler.timesteps.tolist()
    assert calls == [2 if 0.5 <= time <= 0.9 else 1 for time in times] and set(calls) == {1, 2}


def test_an_interval_equals_a_callback_that_turns_guidance_on_and_off(generate, pipe):
    times = []

    def switch(pipe, step, time, tensors):
        times.append(float(time))
        following = pipe.scheduler.timesteps[step + 1 : step + 2]
        pipe._guidance_scale = 3.0 if any(0.5 <= t <= 0.9 for t in following) else 1.0
        return {}

    expected = generate(guidance_scale=1.0, num_inference_steps=8, callback_on_step_end=switch)
    assert not 0.5 <= times[0] <= 0.9
    actual = generate(guidance_scale=3.0, guidance_interval=(0.5, 0.9), num_inference_steps=8)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_whole_interval_is_plain_guidance(generate):
    assert torch.equal(generate(guidance_scale=3.0, guidance_interval=(0, 1)), generate(guidance_scale=3.0))


# Callbacks


def test_a_callback_recomputes_the_context_only_when_it_changes_it(generate, pipe, monkeypatch):
    computed, kind = [], type(pipe.transformer)
    project = kind.project_context
    monkeypatch.setattr(
        kind, "project_context", lambda *args, **kwargs: computed.append(1) or project(*args, **kwargs)
    )
    names = ["latents", "condition_embeds", "negative_condition_embeds"]

    def run(change):
        computed.clear()
        options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
        return generate(guidance_scale=3.0, num_inference_steps=4, **options), len(computed)

    def in_place(pipe, step, time, tensors):
        if step == 1:
            tensors["condition_embeds"].mul_(0.5)

    def replaced(pipe, step, time, tensors):
        return {"condition_embeds": 0.5 * tensors["condition_embeds"]} if step == 1 else {}

    plain, once = run(lambda pipe, step, time, tensors: tensors)
    assert once == 1 and torch.equal(plain, generate(guidance_scale=3.0, num_inference_steps=4))
    changed, twice = run(in_place)
    assert twice == 2 and not torch.equal(changed, plain)
    again, twice = run(replaced)
    assert twice == 2 and torch.equal(again, changed)
    with torch.inference_mode():
        inference, _ = run(in_place)
    assert_near(inference.clone(), changed)


# Weights by modality


@pytest.mark.parametrize("length", [0.002, 700 / 44100], ids=["window", "long"])
def test_the_weight_of_the_only_modality_is_the_guidance_scale(generate, length):
    plain = generate(guidance_scale=3.0, audio_length_in_s=length)
    assert_near(generate(guidance_scale={"text": 3.0}, audio_length_in_s=length), plain)


def test_weights_of_1_are_no_guidance(generate, film, calls):
    plain = generate(video=film, guidance_scale=1.0)
    assert torch.equal(generate(video=film, guidance_scale={"text": 1, "video": 1}), plain)
    assert set(calls) == {1}


def test_weights_by_modality_follow_the_formula(generate, film, pipe):
    """One step of rectified flow to time 0 is `x - v`, so the latents of each context give its velocity."""
    pipe.scheduler = AudioXFlowMatchScheduler()
    pipe._initial_scheduler = pipe.scheduler
    latents = normal(1, pipe.transformer.config.in_channels, 24, seed=5)

    def velocity(prompt="a dog", guidance_scale=1.0, **media):
        options = {"num_inference_steps": 1, "latents": latents, "generator": seeded(7)}
        return latents - generate(prompt, guidance_scale=guidance_scale, **media, **options)

    sound = (normal(2, 300), 44100)
    every = velocity(video=film, audio=sound)
    no_text, no_video = velocity(None, video=film, audio=sound), velocity(audio=sound)
    no_audio = velocity(video=film)
    expected = every + 2 * (every - no_text) + 6 * (every - no_video) - 0.5 * (every - no_audio)
    actual = velocity(video=film, audio=sound, guidance_scale={"text": 3.0, "video": 7.0, "audio": 0.5})
    assert_near(actual, expected)
    assert (actual - every).abs().max() > 1e-2 * every.abs().max()


@pytest.mark.parametrize("length", [0.002, 700 / 44100], ids=["window", "long"])
def test_the_weight_of_the_only_modality_leads_away_from_its_negative_prompt(generate, length):
    options = {"negative_prompt": "rain", "audio_length_in_s": length}
    expected = generate(guidance_scale=3.0, **options)
    assert_near(generate(guidance_scale={"text": 3.0}, **options), expected)
    assert not torch.equal(expected, generate(guidance_scale=3.0, audio_length_in_s=length))


def test_weights_with_negative_prompts_follow_the_formula(generate, film, pipe):
    """Each weight compares with the context in which the negative prompt replaces the prompt of its modality."""
    pipe.scheduler = AudioXFlowMatchScheduler()
    pipe._initial_scheduler = pipe.scheduler
    latents, other = normal(1, pipe.transformer.config.in_channels, 24, seed=5), film.flip(0)

    def velocity(prompt="a dog", guidance_scale=1.0, **media):
        options = {"num_inference_steps": 1, "latents": latents, "generator": seeded(7)}
        return latents - generate(prompt, guidance_scale=guidance_scale, **media, **options)

    every = velocity(video=film)
    rain, other_film = velocity("rain", video=film), velocity(video=other)
    sound = (normal(2, 300), 44100)
    with_sound = velocity(video=film, audio=sound)
    expected = every + 2 * (every - rain) + 6 * (every - other_film) + (every - with_sound)
    negatives = {"negative_prompt": "rain", "negative_video": other, "negative_audio": sound}
    actual = velocity(video=film, guidance_scale={"text": 3.0, "video": 7.0, "audio": 2.0}, **negatives)
    assert_near(actual, expected)
    assert (actual - every).abs().max() > 1e-2 * every.abs().max()


def test_negative_prompts_of_a_batch_go_with_their_weights(generate, film):
    options = {"video": film, "guidance_scale": {"text": 3.0, "video": 2.0}}
    texts, negatives = ["a dog", "a bell"], ["rain", "wind"]
    seeds = [seeded(seed) for seed in range(4)]
    together = generate(texts, negative_prompt=negatives, num_waveforms_per_prompt=2, generator=seeds, **options)
    for sound in range(4):
        alone = {"negative_prompt": negatives[sound // 2], "generator": [seeded(sound)]}
        assert_near(together[sound : sound + 1], generate(texts[sound // 2], **alone, **options))


def test_negative_embeds_replace_the_negative_text(generate, pipe):
    embeds, _ = pipe.encode_prompt("rain")
    options = {"guidance_scale": {"text": 3.0}}
    assert_near(generate(negative_prompt_embeds=embeds, **options), generate(negative_prompt="rain", **options))


def test_each_weight_other_than_1_adds_a_pass(generate, film, calls):
    generate(video=film, guidance_scale={"text": 3, "video": 1})
    assert set(calls) == {2}
    calls.clear()
    generate(video=film, guidance_scale={"text": 3, "video": 7}, guidance_interval=(0, 0.9))
    assert set(calls) == {1, 3}


def test_a_sound_of_a_batch_ignores_weights_of_modalities_that_it_lacks(generate, film):
    weights = {"text": 3.0, "video": 7.0}
    both = generate(["a dog", "rain"], video=[film, None], guidance_scale=weights, generator=[seeded(0), seeded(1)])
    alone = generate("rain", guidance_scale={"text": 3.0}, generator=[seeded(1)])
    assert_near(both[1:], alone)


def test_an_edit_takes_weights_an_interval_and_negative_audio(pipe):
    edit = AudioXInpaintPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    sound = (0.3 * normal(2, 400), 44100)

    def run(**kwargs):
        kwargs = {"num_inference_steps": 4, "num_refinements": 1, "crossfade_ms": 0.5, "output_type": "pt", **kwargs}
        return edit(sound, "a dog", inpaint_spans=[(0.002, 0.004)], generator=seeded(), **kwargs).audios

    plain = run(guidance_scale=3.0)
    results = [
        run(guidance_scale={"text": 3.0}),
        run(guidance_scale=3.0, guidance_interval=(0, 0.8)),
        run(guidance_scale=3.0, negative_audio=(normal(2, 400, seed=4), 44100)),
        run(guider=AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5)),
        run(guider=ClassifierFreeZeroStarGuidance(guidance_scale=3.0)),
    ]
    for result in results:
        assert result.isfinite().all() and not torch.equal(result, plain)
        assert torch.equal(result[..., :60], sound[0][None, :, :60])


# Guiders of diffusers


def test_the_plain_guider_is_guidance_scale(generate):
    assert_near(generate(guider=ClassifierFreeGuidance(guidance_scale=3.0)), generate(guidance_scale=3.0))


def denoise_by_hand(pipe, generate, combine):
    """Denoise one window with `combine(conditional, unconditional, sample, sigma, step)`, which returns the sample."""
    context = pipe.encode_conditions("a dog")
    pipe.scheduler.set_timesteps(STEPS)
    pipe.scheduler.set_begin_index(0)
    generator = seeded()
    latents = pipe.prepare_latents(1, torch.device("cpu"), generator)
    for step, time in enumerate(pipe.scheduler.timesteps):
        sigma = math.tan(float(time) * math.pi / 2)
        model_input = latents / math.sqrt(sigma**2 + 1)
        with torch.no_grad():
            velocities = [
                pipe.transformer(model_input, time.expand(1), embeds).sample
                for embeds in (context, torch.zeros_like(context))
            ]
        clean = combine(*velocities, latents, sigma, step)
        velocity = pipe.scheduler.velocity(clean, latents, time)
        latents = pipe.scheduler.step(velocity, time, latents, generator=generator, return_dict=False)[0]
    return latents


def clean_sample(velocity, sample, sigma):
    return sample / (sigma**2 + 1) - velocity * sigma / math.sqrt(sigma**2 + 1)


def test_adaptive_projected_guidance_follows_its_paper(generate, pipe):
    """Algorithm 1 of arXiv 2410.02416 on denoised samples: momentum, a bound of the norm, and the orthogonal part."""
    momentum = torch.zeros(())

    def combine(conditional, unconditional, sample, sigma, step):
        nonlocal momentum
        clean, null = clean_sample(conditional, sample, sigma), clean_sample(unconditional, sample, sigma)
        momentum = clean - null - 0.5 * momentum
        update = momentum * min(1.0, 2.0 / float(momentum.norm()))
        unit = clean / clean.norm()
        parallel = (update * unit).sum() * unit
        return clean + (4.0 - 1) * (update - parallel + 0.3 * parallel)

    expected = denoise_by_hand(pipe, generate, combine)
    guider = AdaptiveProjectedGuidance(
        guidance_scale=3.0,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=2.0,
        eta=0.3,
        use_original_formulation=True,
    )
    assert_near(generate(guider=guider), expected)
    assert guider.momentum_buffer is None  # the call works on a copy


def test_cfg_zero_star_follows_its_paper(generate, pipe):
    """Section 4 of arXiv 2503.18886 on the velocity of rectified flow: no flow in the first step, then a scaled null prediction."""

    def combine(conditional, unconditional, sample, sigma, step):
        cleans = clean_sample(conditional, sample, sigma), clean_sample(unconditional, sample, sigma)
        flow, null = ((sample - clean) / sigma - clean for clean in cleans)
        scale = (flow * null).sum() / (null * null).sum()
        guided = scale * null + 3.0 * (flow - scale * null) if step else torch.zeros_like(flow)
        return (sample - sigma * guided) / (1 + sigma)

    expected = denoise_by_hand(pipe, generate, combine)
    assert_near(generate(guider=ClassifierFreeZeroStarGuidance(guidance_scale=3.0)), expected)


def test_windows_keep_the_momentum_of_their_own_batch(generate):
    """Momentum of batches of one window equals that of a batch of all of them."""
    guider = AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5)
    options = {"guider": guider, "audio_length_in_s": 700 / 44100}
    assert_near(generate(window_batch_size=1, **options), generate(window_batch_size=4, **options))


# Negative video and audio


def test_a_negative_video_and_sound_are_one_context_with_the_text(generate, film, pipe):
    sound = (normal(2, 300, seed=8), 44100)
    context = pipe.encode_conditions("rain", video=film, audio=sound, generator=seeded(9))
    generator = seeded(9)
    latents = normal(1, pipe.transformer.config.in_channels, 24, seed=1)
    expected = generate(guidance_scale=3.0, negative_condition_embeds=context, latents=latents, num_inference_steps=1)
    options = {"negative_prompt": "rain", "negative_video": film, "negative_audio": sound}
    actual = generate(guidance_scale=3.0, latents=latents, generator=generator, num_inference_steps=1, **options)
    assert_near(actual, expected)
    assert not torch.equal(expected, generate(guidance_scale=3.0, latents=latents, num_inference_steps=1))


def test_a_list_of_pictures_is_one_negative_video(generate, film):
    pictures = [Image.fromarray(frame) for frame in (film * 255).byte().permute(0, 2, 3, 1).numpy()]
    array = np.stack([np.asarray(picture) for picture in pictures])
    options = {"guidance_scale": 3.0}
    assert torch.equal(generate(negative_video=pictures, **options), generate(negative_video=array, **options))


def test_a_negative_video_goes_with_each_sound_of_a_batch(generate, film):
    both = generate(["a dog", "rain"], negative_video=film, guidance_scale=3.0, generator=[seeded(0), seeded(1)])
    alone = generate("rain", negative_video=film, guidance_scale=3.0, generator=[seeded(1)])
    assert_near(both[1:], alone)


# Errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance_scale": {"text": 3, "smell": 2}}, ("`guidance_scale`", "text, video, audio", "smell")),
        ({"guidance_scale": {}}, ("`guidance_scale`", "{}")),
        ({"guidance_scale": {"text": math.nan}}, ("`guidance_scale`", "nan")),
        ({"guidance_scale": {"video": 3}}, ("`guidance_scale`", "video", "no sound")),
        ({"guidance_scale": {"text": 3}, "negative_audio": (torch.ones(9), 8000)}, ("`negative_audio`", "audio")),
        ({"guidance_scale": {"text": 1}, "negative_prompt": "rain"}, ("`negative_prompt`", "other than 1", "text")),
        (
            {"guidance_scale": {"text": 3}, "negative_condition_embeds": torch.ones(1, 1, 1)},
            ("`guidance_scale`", "`negative_condition_embeds`"),
        ),
        ({"guidance_interval": (0.8, 0.2)}, ("`guidance_interval`", "(0.8, 0.2)")),
        ({"guidance_interval": 0.5}, ("`guidance_interval`", "0.5")),
        ({"guidance_interval": (0, 2)}, ("`guidance_interval`", "(0, 2)")),
        ({"guider": SkipLayerGuidance(skip_layer_guidance_layers=[0])}, ("`guider`", "SkipLayerGuidance")),
        ({"guider": "apg"}, ("`guider`", "str")),
        ({"guider": ClassifierFreeGuidance(), "guidance_scale": 2.0}, ("`guidance_scale`", "`guider`")),
        ({"guider": ClassifierFreeGuidance(), "guidance_rescale": 0.5}, ("`guidance_rescale`", "`guider`")),
        ({"guider": ClassifierFreeGuidance(), "guidance_interval": (0, 0.5)}, ("`guidance_interval`", "`stop`")),
        ({"negative_video": [np.zeros((1, 8, 8, 3), np.uint8)] * 3}, ("`negative_video`", "3", "1")),
    ],
)
def test_wrong_guidance_is_refused_by_name(generate, calls, arguments, words):
    with refused(*words):
        generate(**arguments)
    assert not calls
