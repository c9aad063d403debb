import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig
from diffusers.callbacks import PipelineCallback
from diffusers.hooks import apply_group_offloading
from helpers import seeded
from peft import LoraConfig
from PIL import Image

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio, save_video

WINDOW = 192  # samples of the small checkpoint's window
FRAMES = 4


@pytest.fixture
def generate(pipe):
    def run(seed=0, **kwargs):
        kwargs = {"num_inference_steps": 3, "output_type": "pt", "generator": seeded(seed), **kwargs}
        return pipe(**kwargs).audios

    return run


@pytest.fixture
def clip():
    """Return a random video at the model's rate, uint8 `[T, 3, H, W]`."""
    return torch.randint(0, 256, (FRAMES, 3, 48, 80), dtype=torch.uint8, generator=seeded(1))


@pytest.fixture
def sound():
    return torch.randn(2, 160, generator=seeded(2)).clamp(-3, 3) / 3, 44100


@pytest.fixture
def warned(caplog):
    """Return a function that lists the package's warnings so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("audiox_diffusers")]


# Results


@pytest.mark.parametrize("output_type", ["np", "pt", "latent"])
def test_outputs(pipe, output_type):
    kwargs = {"prompt": ["rain", "wind"], "num_inference_steps": 2, "output_type": output_type}
    output = pipe(**kwargs, generator=seeded()).audios
    (as_tuple,) = pipe(**kwargs, generator=seeded(), return_dict=False)
    assert isinstance(output, np.ndarray if output_type == "np" else torch.Tensor)
    assert output.shape == ((2, 8, 24) if output_type == "latent" else (2, 2, WINDOW))
    assert str(output.dtype).endswith("float32")
    assert (output == as_tuple).all()


def test_output_is_cut_from_the_window(generate):
    whole = generate(prompt="rain")
    cut = generate(prompt="rain", audio_length_in_s=49.7 / 44100)
    assert cut.shape == (1, 2, 50)
    assert torch.equal(cut, whole[..., :50])


def test_seeds(generate):
    assert torch.equal(generate(prompt="rain"), generate(prompt="rain"))
    assert not torch.equal(generate(prompt="rain"), generate(prompt="rain", seed=1))


@pytest.mark.parametrize("rest", [{}, {"guidance_scale": 1.0}, {"negative_prompt": "wind"}, {"guidance_rescale": 0.7}])
def test_each_item_is_the_same_alone_and_in_a_batch(generate, clip, sound, close, rest):
    prompts, videos, sounds = ["rain", None, "bell"], [None, clip, None], [sound, None, None]
    batch = generate(
        prompt=prompts,
        video=videos,
        audio=sounds,
        generator=[seeded(i) for i in range(3)],
        output_type="latent",
        **rest,
    )
    for i in range(3):
        alone = generate(
            prompt=prompts[i],
            video=videos[i],
            audio=sounds[i],
            generator=[seeded(i)],
            output_type="latent",
            **rest,
        )
        close(batch[i], alone[0], 1e-4)


def test_waveforms_of_a_prompt_are_neighbours(generate, sound, close):
    """Each has its negative prompt, and its own sample from the posterior of the audio prompt."""
    other = (sound[0].flip(1), sound[1])
    batch = generate(
        prompt=["rain", "bell"],
        negative_prompt=["wind", "sea"],
        audio=[sound, other],
        num_waveforms_per_prompt=2,
        generator=[seeded(i) for i in range(4)],
        output_type="latent",
    )
    for i in range(4):
        alone = generate(
            prompt=["rain", "bell"][i // 2],
            negative_prompt=["wind", "sea"][i // 2],
            audio=[sound, other][i // 2],
            generator=[seeded(i)],
            output_type="latent",
        )
        close(batch[i], alone[0], 1e-4)


def test_one_item_goes_with_a_longer_list(generate, clip, close):
    together = generate(prompt=["rain", "bell"], video=clip, generator=[seeded(0), seeded(1)])
    repeated = generate(prompt=["rain", "bell"], video=[clip, clip], generator=[seeded(0), seeded(1)])
    close(together, repeated, 1e-5)


# Prompts


def test_every_modality_changes_the_result(generate, clip, sound):
    results = [
        generate(prompt="rain"),
        generate(prompt="wind"),
        generate(prompt="rain", video=clip),
        generate(prompt="rain", image=clip[0]),
        generate(prompt="rain", audio=sound),
        generate(prompt="rain", video=clip, audio=sound),
        generate(prompt="rain", negative_prompt="wind"),
        generate(prompt="rain", guidance_scale=1.0),
        generate(prompt="rain", guidance_rescale=0.5),
    ]
    for i, result in enumerate(results):
        assert result.isfinite().all()
        assert all((result - other).abs().max() > 1e-3 for other in results[:i])


def test_every_form_of_a_video_gives_the_same_embeddings(pipe, clip):
    expected = pipe.encode_video(clip)
    array = clip.permute(0, 2, 3, 1).numpy()
    for video in (clip / 255, array, array / np.float32(255), [Image.fromarray(frame) for frame in array]):
        torch.testing.assert_close(pipe.encode_video(video), expected)
        torch.testing.assert_close(pipe.encode_video([video]), expected)
    torch.testing.assert_close(pipe.encode_video(clip[None].expand(2, -1, -1, -1, -1))[1], expected[0])


def test_image_is_a_still_video(pipe, clip, tmp_path):
    expected = pipe.encode_video(clip[:1].expand(FRAMES, -1, -1, -1))
    picture = Image.fromarray(clip[0].permute(1, 2, 0).numpy())
    picture.save(tmp_path / "picture.png")
    for image in (clip[0], clip[0] / 255, picture, np.asarray(picture), tmp_path / "picture.png", clip[:1]):
        torch.testing.assert_close(pipe.encode_video(image=image), expected)


def test_short_video_keeps_its_last_frame(pipe, clip):
    padded = torch.cat((clip[:2], clip[1:2], clip[1:2]))
    torch.testing.assert_close(pipe.encode_video(clip[:2]), pipe.encode_video(padded))


def test_long_video_is_cut_with_a_warning(pipe, clip, warned):
    embeds = pipe.encode_video(torch.cat((clip, clip)))
    torch.testing.assert_close(embeds, pipe.encode_video(clip))
    assert len([message for message in warned() if "longer than the model's window" in message]) == 1


def test_black_video_is_no_video(pipe, clip, warned):
    assert pipe.encode_video(torch.zeros_like(clip)) is None
    assert "black" in warned()[0]
    embeds = pipe.encode_video([clip, torch.zeros_like(clip)])
    assert embeds[0].any() and not embeds[1].any()


def test_files(pipe, clip, sound, tmp_path):
    frames = clip.repeat_interleave(6, dim=0)
    save_video(tmp_path / "clip.mkv", frames, fps=30)
    embeds = pipe.encode_video(tmp_path / "clip.mkv")
    assert torch.nn.functional.cosine_similarity(embeds.flatten(), pipe.encode_video(clip).flatten(), dim=0) > 0.8

    save_audio(tmp_path / "sound.wav", *sound)
    from_file = pipe.encode_audio(str(tmp_path / "sound.wav"), seeded())
    torch.testing.assert_close(from_file, pipe.encode_audio(sound, seeded()), atol=0.03, rtol=0)


def test_audio_is_resampled_and_remixed(pipe, sound):
    waveform, rate = sound
    mono = waveform[:1]
    expected = pipe.encode_audio((mono.expand(2, -1), rate), seeded())
    for given in ((mono, rate), (mono[0], rate), (mono.numpy(), rate), (mono[0].double().numpy(), rate)):
        assert torch.equal(pipe.encode_audio(given, seeded()), expected)
    assert not torch.allclose(pipe.encode_audio((mono, rate // 2), seeded()), expected)


def test_audio_padding_side(pipe, sound):
    short, rate = sound[0][:, :40], sound[1]
    right = torch.nn.functional.pad(short, (0, 120))
    left = torch.nn.functional.pad(short, (120, 0))
    assert torch.equal(pipe.encode_audio((short, rate), seeded()), pipe.encode_audio((right, rate), seeded()))
    assert torch.equal(
        pipe.encode_audio((short, rate), seeded(), padding_side="left"), pipe.encode_audio((left, rate), seeded())
    )


def test_silence_is_no_audio(pipe, sound):
    assert not pipe.encode_audio((torch.zeros(2, 160), 44100)).any()
    latents = pipe.encode_audio([None, sound])
    assert not latents[0].any() and latents[1].any()
    assert pipe.encode_audio([None, None]) is None
    batch = torch.stack((torch.zeros(2, 160), sound[0]))
    assert torch.equal(pipe.encode_audio((batch, 44100), seeded())[1:], pipe.encode_audio(sound, seeded()))


def test_audio_is_drawn_from_the_posterior(pipe, sound):
    draws = torch.stack([pipe.encode_audio(sound, seeded(i))[0] for i in range(200)])
    posterior = pipe.vae.encode(sound[0][None]).latent_dist
    torch.testing.assert_close(draws.std(dim=0), posterior.std[0], rtol=0.35, atol=0)
    assert ((draws.mean(dim=0) - posterior.mean[0]) / posterior.std[0]).abs().max() < 0.4


def test_silent_and_black_prompts_are_a_warning(pipe, warned):
    pipe.encode_audio((torch.zeros(2, 160), 44100))
    assert "`audio` is silent" in warned()[0]
    pipe.encode_video(image=Image.new("RGB", (8, 8)))
    assert "`image` is black" in warned()[1]


def test_sound_file_with_nan(pipe, sound, tmp_path):
    waveform = (sound[0] * 1).numpy().astype("<f4")
    waveform[0, 40] = np.nan
    data = waveform.T.tobytes()
    header = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += b"".join(
        value.to_bytes(size, "little") for value, size in ((3, 2), (2, 2), (44100, 4), (44100 * 8, 4), (8, 2), (32, 2))
    )
    (tmp_path / "nan.wav").write_bytes(header + b"data" + len(data).to_bytes(4, "little") + data)
    with pytest.raises(ValueError, match=r"`audio`.*nan\.wav.*NaN"):
        pipe(audio=tmp_path / "nan.wav", num_inference_steps=1)


def test_loud_audio_is_a_warning(pipe, sound, warned):
    pipe.encode_audio((sound[0] * 4, 44100))
    assert "beyond full scale" in warned()[0]


def test_long_audio_is_cut_with_a_warning(pipe, sound, warned):
    waveform = torch.cat((sound[0], torch.randn(2, 44100, generator=seeded())), dim=1).clamp(-1, 1)
    assert torch.equal(pipe.encode_audio((waveform, 44100), seeded()), pipe.encode_audio(sound, seeded()))
    assert "longer than the model's window" in warned()[0]


def test_long_prompt_is_cut_with_a_warning(pipe, warned):
    pipe.encode_prompt("a prompt of more than ten letters")
    assert "this part is ignored" in warned()[0]
    assert len(warned()) == 1


def test_default_prompt_of_a_video(generate, clip):
    assert torch.equal(generate(video=clip), generate(video=clip, prompt="Generate general audio for the video"))


def test_text_is_zero_at_the_padding(pipe):
    prompt_embeds, negative_prompt_embeds = pipe.encode_prompt(["a", "abcd"], "x")
    assert prompt_embeds.shape == (2, 10, 64) and negative_prompt_embeds.shape == (1, 10, 64)
    assert prompt_embeds[0, :2].any(dim=1).all() and not prompt_embeds[0, 2:].any()
    assert prompt_embeds[1, :5].any(dim=1).all() and not prompt_embeds[1, 5:].any()


@torch.no_grad()
def test_text_encoder_does_not_see_the_padding(pipe):
    ids = pipe.tokenizer("abc", return_tensors="pt").input_ids
    torch.testing.assert_close(
        pipe.encode_prompt("abc")[0][:, : ids.shape[1]], pipe.text_encoder(ids).last_hidden_state, atol=1e-5, rtol=1e-4
    )


def test_long_negative_prompt_is_named_in_the_warning(pipe, warned):
    pipe("a", negative_prompt="a prompt of more than ten letters", num_inference_steps=1)
    assert "`negative_prompt` 0 is longer" in warned()[0]


def test_tokenizer_of_another_length(pipe):
    pipe.tokenizer.model_max_length = 12
    with pytest.raises(ValueError, match="`tokenizer` pads to 12 tokens"):
        pipe("a", num_inference_steps=1)


@torch.no_grad()
def test_embeds_replace_prompts(generate, pipe, clip, sound):
    expected = generate(prompt="rain", negative_prompt="wind")
    prompt_embeds, negative_prompt_embeds = pipe.encode_prompt("rain", "wind")
    embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
    assert torch.equal(generate(**embeds), expected)
    assert torch.equal(
        generate(
            condition_embeds=pipe.encode_conditions("rain"), negative_condition_embeds=pipe.encode_conditions("wind")
        ),
        expected,
    )

    generator = seeded()
    context = pipe.encode_conditions("rain", video=clip, audio=sound, generator=generator)
    assert torch.equal(
        generate(condition_embeds=context, generator=generator), generate(prompt="rain", video=clip, audio=sound)
    )


@torch.no_grad()
def test_without_text_encoder(generate, pipe):
    expected = generate(prompt="rain")
    prompt_embeds, _ = pipe.encode_prompt("rain")
    pipe.text_encoder = pipe.tokenizer = pipe.image_encoder = None
    assert torch.equal(generate(prompt_embeds=prompt_embeds), expected)
    with pytest.raises(ValueError, match="prompt_embeds"):
        generate(prompt="rain")
    with pytest.raises(ValueError, match="image_encoder"):
        generate(prompt_embeds=prompt_embeds, image=Image.new("RGB", (8, 8), "red"))


def test_encode_prompt_needs_only_text_components(pipe):
    alone = AudioXPipeline(
        transformer=None,
        conditioner=None,
        vae=None,
        scheduler=None,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        image_encoder=None,
    )
    assert torch.equal(alone.encode_prompt("rain")[0], pipe.encode_prompt("rain")[0])


def test_latents_are_unit_noise(generate):
    noise = torch.randn(1, 8, 24, generator=seeded())
    generator = seeded()
    torch.randn(1, 8, 24, generator=generator)
    assert torch.equal(generate(prompt="rain", latents=noise, generator=generator), generate(prompt="rain"))


# The loop


def test_guidance_is_read_at_each_step(generate, pipe):
    def stop_guiding(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    calls = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
    generate(prompt="rain", callback_on_step_end=stop_guiding)
    handle.remove()
    assert calls == [2, 1, 1]
    assert pipe.num_timesteps == 3


def test_callback_sees_and_replaces_tensors(generate, pipe):
    seen = []

    def zero_last(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    latents = generate(
        prompt="rain",
        callback_on_step_end=zero_last,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
        output_type="latent",
    )
    assert not latents.any()
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert [time for _, time, _ in seen] == sorted((time for _, time, _ in seen), reverse=True)
    assert seen[0][2] == {"latents", "condition_embeds", "negative_condition_embeds"}


def test_pipeline_callback(generate):
    class Record(PipelineCallback):
        tensor_inputs = ["latents", "condition_embeds"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append(set(callback_kwargs))
            return callback_kwargs

    seen = []
    generate(prompt="rain", callback_on_step_end=Record(cutoff_step_ratio=None, cutoff_step_index=1))
    assert seen == [{"latents", "condition_embeds"}] * 3


def test_rescaled_guidance_has_the_deviation_of_the_conditional(generate, pipe, monkeypatch):
    """With a rescale of 1, the guided velocity has the standard deviation of the conditional one over its channels."""
    outputs, velocities = [], []
    pipe.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    step = pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler,
        "step",
        lambda velocity, t, x, generator=None, **kwargs: (
            velocities.append(velocity) or step(velocity, t, x, generator, **kwargs)
        ),
    )
    generate(prompt="rain", guidance_rescale=1.0)
    for output, velocity in zip(outputs, velocities, strict=True):
        torch.testing.assert_close(velocity.std(dim=1), output[1:].std(dim=1))


def test_lora_scale(generate, pipe, close):
    base = generate(prompt="rain")
    pipe.transformer.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = generate(prompt="rain")
    assert (adapted - base).abs().max() > 1e-2
    close(generate(prompt="rain", attention_kwargs={"scale": 0.0}), base, 1e-5)
    close(generate(prompt="rain", attention_kwargs={"scale": 1.0}), adapted, 1e-5)


def test_interrupt(generate):
    steps = []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return tensors

    first = []
    generate(prompt="rain", callback_on_step_end=lambda p, i, t, k: first.append(k["latents"]) or k)
    stopped = generate(prompt="rain", callback_on_step_end=interrupt, output_type="latent")
    assert steps == [0]
    assert torch.equal(stopped, first[0])


def test_progress_bar(pipe, capfd):
    pipe.set_progress_bar_config(disable=False)
    pipe("rain", num_inference_steps=7)
    assert "7/7" in capfd.readouterr().err


def test_a_call_changes_nothing_but_its_own_state(pipe, clip, sound):
    before = {name: copy.deepcopy(c.state_dict()) for name, c in pipe.components.items() if hasattr(c, "state_dict")}
    modes = {name: c.training for name, c in pipe.components.items() if hasattr(c, "training")}
    precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.is_grad_enabled()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pipe("rain", video=clip, audio=sound, num_inference_steps=2, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert precision == (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.is_grad_enabled())
    assert modes == {name: c.training for name, c in pipe.components.items() if hasattr(c, "training")}
    for name, tensors in before.items():
        after = pipe.components[name].state_dict()
        assert all(torch.equal(after[key], tensor) for key, tensor in tensors.items())


# Offloading, caches, dtypes, compilation


def test_offloaded_components(generate, pipe, clip, sound, close):
    inputs = {"prompt": "rain", "video": clip, "audio": sound}
    expected = generate(**inputs)
    for component in (pipe.text_encoder, pipe.image_encoder, pipe.conditioner, pipe.transformer, pipe.vae):
        cpu_offload(component, execution_device=torch.device("cpu"))
    assert pipe.transformer.proj_in.weight.is_meta
    close(generate(**inputs), expected, 1e-5)


def test_model_cpu_offload(generate, pipe, clip, sound):
    """The hooks are installed again after each call, here with the CPU as the device."""
    inputs = {"prompt": "rain", "video": clip, "audio": sound}
    expected = generate(**inputs)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(generate(**inputs), expected)
        assert len(pipe._all_hooks) == 5


def test_pipeline_group_offload(generate, pipe, close):
    expected = generate(prompt="rain")
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    close(generate(prompt="rain"), expected, 1e-5)


def test_group_offloading(generate, pipe, clip, sound, close):
    inputs = {"prompt": "rain", "video": clip, "audio": sound}
    expected = generate(**inputs)
    for component in (pipe.conditioner, pipe.transformer, pipe.vae):
        component.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
    for component in (pipe.text_encoder, pipe.image_encoder):
        apply_group_offloading(component, torch.device("cpu"), offload_type="leaf_level")
    close(generate(**inputs), expected, 1e-5)


def test_cached_first_block(generate, pipe, close):
    expected = generate(prompt="rain", num_inference_steps=6)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    close(generate(prompt="rain", num_inference_steps=6), expected, 1e-5)
    pipe.transformer.disable_cache()

    blocks = []
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    pipe.transformer.transformer_blocks[1].ff.register_forward_hook(lambda *args: blocks.append(1))
    skipped = generate(prompt="rain", num_inference_steps=6)
    assert len(blocks) < 6
    assert skipped.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(generate, pipe, clip, sound, dtype):
    inputs = {"prompt": "rain", "video": clip, "audio": sound, "guidance_scale": 2.0, "output_type": "latent"}
    expected = generate(**inputs)
    pipe.to(dtype)
    actual = generate(**inputs)
    assert actual.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.98
    assert generate(**{**inputs, "output_type": "pt"}).dtype == torch.float32


def test_compiled_blocks(generate, pipe, close):
    expected = generate(prompt="rain")
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    close(generate(prompt="rain"), expected, 1e-5)


# Refused arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "at least one of `prompt`"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": 3}, "`prompt` must be"),
        ({"prompt": ["a", 3]}, "`prompt` must be"),
        ({"prompt": [None]}, "sample 0 has none"),
        ({"prompt": "a", "negative_prompt": 3}, "`negative_prompt` must be"),
        ({"prompt": "a", "negative_prompt": ["a", "b"]}, "negative prompts"),
        ({"prompt": "a", "audio_length_in_s": 0}, "`audio_length_in_s`"),
        ({"prompt": "a", "audio_length_in_s": -1.0}, "`audio_length_in_s`"),
        ({"prompt": "a", "audio_length_in_s": float("inf")}, "`audio_length_in_s`"),
        ({"prompt": "a", "window_batch_size": 0}, "`window_batch_size`"),
        ({"prompt": "a", "window_overlap_in_s": 0}, "`window_overlap_in_s` must be at least"),
        ({"prompt": "a", "window_overlap_in_s": 192 / 44100}, "`window_overlap_in_s`.*at most 0.004172 s"),
        ({"prompt": "a", "audio_length_in_s": float("nan")}, "`audio_length_in_s`"),
        ({"prompt": "a", "num_inference_steps": 0}, "`num_inference_steps`"),
        ({"prompt": "a", "num_inference_steps": 2.5}, "`num_inference_steps`"),
        ({"prompt": "a", "num_waveforms_per_prompt": 0}, "`num_waveforms_per_prompt`"),
        ({"prompt": "a", "output_type": "mp3"}, "`output_type`"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "`guidance_scale`"),
        ({"prompt": "a", "guidance_scale": "strong"}, "`guidance_scale`"),
        ({"prompt": "a", "guidance_rescale": 2.0}, "`guidance_rescale`"),
        ({"prompt": "a", "negative_prompt": ["x", None]}, "`negative_prompt` must be"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 9, 64)}, "`negative_prompt_embeds` must have"),
        ({"prompt": "a", "latents": torch.zeros(1, 8, 23)}, "`latents` must have the shape"),
        ({"prompt": "a", "latents": torch.zeros(2, 8, 24)}, "`latents` must have the shape"),
        ({"prompt": "a", "generator": [seeded(), seeded()]}, "`generator` is a list of 2"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["noise"]}, "`callback_on_step_end_tensor_inputs`"),
        ({"prompt": ["a", "b"], "audio": [(torch.ones(9), 8000)] * 3}, "equally long.*`prompt` has 2"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 10, 64)}, "`prompt` or `prompt_embeds`"),
        ({"prompt_embeds": torch.zeros(1, 9, 64)}, "`prompt_embeds` must have the shape"),
        ({"condition_embeds": torch.zeros(1, 36, 65)}, "`condition_embeds` must have the shape"),
        ({"condition_embeds": torch.zeros(1, 36, 64), "prompt": "a"}, "leave out `prompt`"),
        ({"prompt": "a", "negative_condition_embeds": torch.zeros(1, 30, 64)}, "negative prompts give a context"),
        ({"audio_padding_side": "middle", "audio": (torch.ones(9), 8000)}, "`audio_padding_side`"),
        ({"video": torch.zeros(4, 3, 8), "prompt": "a"}, "`video` must have the shape"),
        ({"video": torch.rand(4, 3, 8, 8) * 255}, "`video`: floating-point frames must lie in 0..1"),
        ({"video": torch.full((4, 3, 8, 8), float("nan"))}, "`video`: floating-point frames"),
        ({"video": torch.zeros(4, 3, 8, 8, dtype=torch.int64)}, "`video` must be uint8"),
        ({"video": torch.zeros(0, 3, 8, 8)}, "`video` must have the shape"),
        ({"video": 5}, "`video` must be a path"),
        ({"video": []}, "`video` is an empty list"),
        ({"video": "nowhere.mp4"}, "nowhere.mp4"),
        ({"image": torch.zeros(2, 3, 8)}, "`image` must have the shape"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": torch.ones(3, 8, 8), "video": torch.ones(4, 3, 8, 8)}, "either `video` or `image`"),
        ({"audio": torch.ones(2, 100)}, "`audio` must be a path or"),
        ({"audio": (torch.ones(5, 100), 44100)}, r"\[5, 100\]"),
        ({"audio": (torch.ones(2, 0), 44100)}, r"\[2, 0\]"),
        ({"audio": (torch.full((2, 9), float("nan")), 44100)}, "NaN"),
        ({"audio": (torch.ones(2, 9, dtype=torch.int64), 44100)}, "floating point"),
        ({"audio": (torch.ones(2, 9), 0)}, "rate"),
        ({"audio": "nowhere.wav"}, "nowhere.wav"),
    ],
)
def test_bad_input(pipe, kwargs, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pipe(**{"num_inference_steps": 1, **kwargs})


def test_a_call_projects_its_context_once(generate, pipe):
    calls = []
    for block in pipe.transformer.transformer_blocks:
        block.attn2.to_k.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
    layers = len(pipe.transformer.transformer_blocks)
    expected = generate(prompt="rain", guidance_scale=3.0)
    # Only the conditional half: the other one has the null context.
    assert calls == [1] * layers
    calls.clear()
    generate(prompt="rain", negative_prompt="wind", guidance_scale=3.0)
    assert calls == [2] * layers
    calls.clear()
    # A callback that does not change the context does not make it be projected again.
    found = generate(prompt="rain", guidance_scale=3.0, callback_on_step_end=lambda *args: {})
    assert calls == [1] * layers
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
