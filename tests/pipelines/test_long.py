"""Sounds longer than a window: their layout, their average, and the prompts of each window."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from helpers import seeded

from audiox_diffusers import AudioXFlowMatchScheduler, AudioXMMTransformer2DModel
from audiox_diffusers.media import save_video
from audiox_diffusers.pipelines import save_features
from audiox_diffusers.pipelines.windows import prompt_shares, window_starts, window_weights

RATE = 44100
WINDOW, HOP = 24, 8  # latent frames of the small checkpoint's window, samples of a frame
LONG = 700 / RATE


@pytest.fixture
def generate(pipe):
    def run(seed=0, **kwargs):
        kwargs = {"num_inference_steps": 2, "output_type": "pt", "generator": [seeded(seed)], **kwargs}
        return pipe(**{"audio_length_in_s": LONG, **kwargs}).audios

    return run


@pytest.fixture
def film(pipe, tmp_path):
    """Write a video of one second at the model's 5 frames per second. Each frame has its own grey."""
    frames = np.stack([np.full((32, 32, 3), 40 * k, np.uint8) for k in range(1, 6)])
    save_video(tmp_path / "film.mkv", frames, fps=5)
    return tmp_path / "film.mkv"


# Layout of windows


@pytest.mark.parametrize(("length", "overlap"), [(25, 6), (42, 6), (43, 6), (100, 1), (500, 23), (77, 12)])
def test_windows_cover_everything_and_overlap(length, overlap):
    starts = window_starts(length, WINDOW, overlap)
    assert starts[0] == 0 and starts[-1] + WINDOW == length
    hops = np.diff(starts)
    assert hops.min() >= 1 and hops.max() <= WINDOW - overlap + 1
    assert len(starts) == -(-(length - overlap) // (WINDOW - overlap))  # no more than it takes

    total = torch.zeros(length)
    for start, weight in zip(starts, window_weights(starts, WINDOW, overlap), strict=True):
        assert weight.min() > 0
        total[start : start + WINDOW] += weight
    torch.testing.assert_close(total, torch.ones(length))


def test_a_single_window_has_weight_1():
    assert window_starts(10, WINDOW, 6) == window_starts(WINDOW, WINDOW, 6) == [0]
    assert torch.equal(window_weights([0], WINDOW, 6), torch.ones(1, WINDOW))


def test_weights_cross_linearly():
    first, second = window_weights([0, 4], 8, 4)
    torch.testing.assert_close(first, torch.tensor([1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]))
    torch.testing.assert_close(second, first.flip(0))


def test_shares_of_a_timed_prompt():
    shares = prompt_shares([(0, 3, "a"), (3, 6, "b"), (6, 9, "c")], 2.0, 50, frame_rate=10.0)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(50))
    assert torch.equal(shares[:, 0], torch.tensor([1.0, 0, 0])) and torch.equal(
        shares[:, -1], torch.tensor([0, 0, 1.0])
    )
    torch.testing.assert_close(shares[0, 10], torch.tensor(0.45))  # at 3.05 s, a second's fade being at its middle
    assert shares[1, 16] == 1


# Results


def test_the_average_is_the_perfect_prediction_of_a_process(gaussian_pipe):
    """
    The Gaussian process that the model knows stays stationary across windows: at the edges of windows, frames have the
    same correlation and deviation as inside.
    """
    latents = gaussian_pipe(
        "a",
        audio_length_in_s=6.0,
        num_inference_steps=25,
        guidance_scale=1.0,
        generator=seeded(),
        output_type="latent",
    ).audios[0]
    starts = window_starts(latents.shape[1], 125, 31)
    assert len(starts) == 4
    before, after = latents[:, :-1], latents[:, 1:]
    correlation = (before * after).mean(0) / (before.square().mean(0) * after.square().mean(0)).sqrt()
    edges = sorted(
        {edge - 1 + k for start in starts[1:] for edge in (start, start - starts[1] + 125) for k in (-1, 0, 1)}
    )
    inside = correlation[10:115]
    assert correlation[edges].min() > inside.min() - 0.02 and correlation[edges].max() < inside.max() + 0.02
    spread = latents.std(dim=0)
    assert spread[edges].min() > spread[10:115].min() - 0.05


def test_every_length(generate, pipe):
    for samples in (1, 191, 192, 193, 399, 701):
        assert generate(prompt="rain", audio_length_in_s=samples / RATE).shape == (1, 2, samples)
    latents = generate(prompt="rain", output_type="latent")
    assert latents.shape == (1, 8, 88)
    assert generate(prompt="rain", latents=torch.zeros_like(latents)).isfinite().all()


def test_tiles_give_the_same_sound_as_decoding_at_once(generate, pipe, close):
    pipe.vae.tile_latent_min_length = 2 * pipe.vae.tile_latent_overlap + 10
    latents = generate(prompt="rain", output_type="latent")
    with torch.no_grad():
        whole = pipe.vae.decode(latents).sample[..., :700]
    assert (generate(prompt="rain") - whole).abs().max() < 1e-4 * whole.abs().max()
    pieces = list(generate(prompt="rain", output_type="stream"))
    assert [piece.shape for piece in pieces] == [(1, 2, 80)] * 8 + [(1, 2, 60)]
    assert np.array_equal(np.concatenate(pieces, axis=-1), generate(prompt="rain", output_type="np"))
    assert np.array_equal(np.concatenate(list(pipe.stream_latents(latents, 700)), axis=-1), np.concatenate(pieces, -1))


def test_a_stream_decodes_on_demand(generate, pipe):
    pipe.vae.tile_latent_min_length = 2 * pipe.vae.tile_latent_overlap + 10
    calls = []
    handle = pipe.vae.decoder.register_forward_hook(lambda *args: calls.append(args[2].shape))
    stream = generate(prompt="rain", output_type="stream")
    assert not calls
    next(stream)
    assert len(calls) == 1
    list(stream)
    handle.remove()
    assert max(shape[-1] for shape in calls) <= pipe.vae.tile_latent_min_length * HOP


@pytest.mark.parametrize("count", [1, 3])
def test_window_batch_size_bounds_the_batch(generate, pipe, close, count):
    rows = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    latents = generate(prompt=["rain", "wind"], generator=None, latents=torch.ones(2, 8, 88), window_batch_size=count)
    handle.remove()
    assert max(rows) == 2 * 2 * count  # two sounds, with and without the prompt
    pipe.scheduler.register_to_config(eta=0.0)
    results = [
        generate(prompt=["rain", "wind"], latents=torch.ones(2, 8, 88), window_batch_size=size, generator=None)
        for size in (count, 100)
    ]
    close(*results, 1e-4)
    assert latents.shape == (2, 2, 700)


def test_each_item_is_the_same_alone_and_in_a_batch(generate, close, film):
    prompts = ["rain", [(0, 0.01, "wind"), (0.01, LONG, "sea")], None]
    videos = [None, None, film]
    batch = generate(prompt=prompts, video=videos, generator=[seeded(i) for i in range(3)], output_type="latent")
    for i in range(3):
        alone = generate(prompt=prompts[i], video=videos[i], generator=[seeded(i)], output_type="latent")
        close(batch[i], alone[0], 1e-4)


def test_the_scheduler_takes_one_step_per_level(generate, pipe, monkeypatch):
    shapes, step = [], pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler,
        "step",
        lambda velocity, t, x, generator=None, **kwargs: (
            shapes.append(tuple(x.shape)) or step(velocity, t, x, generator, **kwargs)
        ),
    )
    generate(prompt="rain", num_inference_steps=4)
    assert shapes == [(1, 8, 88)] * 4


def test_a_model_whose_weights_fix_the_window(generate, pipe, fixtures_path):
    """It also works with another scheduler, and with `condition_embeds`."""
    pipe.transformer = AudioXMMTransformer2DModel(
        sample_size=WINDOW, in_channels=8, num_layers=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_input_dim=64, num_context_tokens=36, ff_inner_dim=32,
    ).eval()  # fmt: skip
    pipe.scheduler = AudioXFlowMatchScheduler(stochastic_sampling=True)
    with torch.no_grad():
        context = pipe.encode_conditions("rain")
    expected = generate(prompt="rain")
    assert expected.shape == (1, 2, 700) and expected.isfinite().all()
    torch.testing.assert_close(generate(condition_embeds=context), expected)


# Prompts of each window


def contexts_of(pipe, **kwargs):
    """Return the contexts of all windows of a sound."""
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(tensors["condition_embeds"])
        return {}

    pipe(
        num_inference_steps=1,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["condition_embeds"],
        **kwargs,
    )
    return seen[0]


def test_windows_share_a_context_that_does_not_change(pipe):
    assert len(contexts_of(pipe, prompt="rain", audio_length_in_s=LONG)) == 1


@torch.no_grad()
def test_timed_prompts_apply_in_their_spans(pipe, generate, monkeypatch):
    monkeypatch.setattr("audiox_diffusers.pipelines.windows.PROMPT_FADE", 1e-4)
    timed = [(0, 0.008, "rain"), (0.008, LONG, "wind")]
    contexts = contexts_of(pipe, prompt=timed)
    expected = torch.cat([pipe.encode_conditions(text) for text in ("rain", "wind")])
    torch.testing.assert_close(contexts, expected)

    same = generate(prompt=[(0, 0.008, "rain"), (0.008, LONG, "rain")], output_type="latent")
    plain = generate(prompt="rain", output_type="latent")
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-3 * plain.abs().max().item())
    # One step from the same noise: each text counts in its own frames.
    one = {"num_inference_steps": 1, "output_type": "latent"}
    both, rain, wind = (generate(prompt=prompt, **one) for prompt in (timed, "rain", "wind"))
    edge = round(0.008 * RATE / HOP)
    scale = 1e-4 * rain.abs().max()
    assert (both - rain)[..., : edge - 2].abs().max() < scale < (both - rain)[..., edge + 2 :].abs().max()
    assert (both - wind)[..., edge + 2 :].abs().max() < scale


def test_timed_prompts_set_the_duration(generate):
    timed = [(0, 0.003, "rain"), (0.003, 0.01, None)]
    assert generate(prompt=timed, audio_length_in_s=None).shape[-1] == 441
    assert generate(prompt=[timed, "wind"], audio_length_in_s=None, generator=None).shape == (2, 2, 441)


@torch.no_grad()
def test_each_window_sees_its_own_seconds_of_a_video(pipe, film):
    """With windows of a second, the window at 0.4 s starts with the third frame."""
    frames = torch.stack([torch.full((3, 32, 32), 40 * k, dtype=torch.uint8) for k in range(1, 6)])
    pipe.vae.register_to_config(sampling_rate=200)  # windows of 0.96 s
    contexts = contexts_of(pipe, video=frames, audio_length_in_s=(WINDOW + 10) * HOP / 200)
    expected = [pipe.encode_conditions(video=frames[k:]) for k in (0, 2)]
    torch.testing.assert_close(contexts, torch.cat(expected))
    from_file = contexts_of(pipe, video=film, audio_length_in_s=(WINDOW + 10) * HOP / 200)
    torch.testing.assert_close(from_file, torch.cat(expected), atol=0.1, rtol=0.1)


@torch.no_grad()
def test_the_last_frame_of_a_video_is_repeated(pipe, film):
    pipe.vae.register_to_config(sampling_rate=200)
    last = pipe.encode_video(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8))
    for start in (0.95, 1.0, 2.5, 700.0):
        torch.testing.assert_close(pipe.encode_video(film, start=start), last, atol=0.05, rtol=0.05)
        frames = torch.stack([torch.full((3, 32, 32), 40 * k, dtype=torch.uint8) for k in range(1, 6)])
        torch.testing.assert_close(pipe.encode_video(frames, start=start), last)


def test_each_window_hears_its_own_seconds_of_a_sound(pipe):
    """The first window equals that of a short sound. After the end of the sound, there is silence."""
    pipe.vae.register_to_config(sampling_rate=200)
    sound = torch.randn(2, 150, generator=seeded()) / 3
    contexts = contexts_of(
        pipe, prompt="rain", audio=(sound, 200), audio_length_in_s=3 * WINDOW * HOP / 200, generator=seeded(1)
    )
    with torch.no_grad():
        first = pipe.encode_conditions("rain", audio=(sound, 200), generator=seeded(1))
        silent = pipe.encode_conditions("rain")
    torch.testing.assert_close(contexts[:1], first)
    torch.testing.assert_close(contexts[-1:], silent)
    assert len(contexts) == 4


def test_padding_side_is_checked(generate):
    sound = torch.rand(2, 100, generator=seeded()), 44100
    with pytest.raises(ValueError, match="`audio_padding_side` must be one of left, right, got 'lef'"):
        generate(prompt="rain", audio=sound, audio_padding_side="lef")


def test_an_unfinished_stream_does_not_change_the_next_call(pipe, generate):
    # Random weights hardly react to the context, which would hide a stale cache.
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=seeded(5))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=2.0))
    expected = generate(prompt="rain", num_inference_steps=6)
    stream = generate(prompt="a dog", num_inference_steps=6, output_type="stream")
    next(stream)
    assert torch.equal(generate(prompt="rain", num_inference_steps=6), expected)


def test_an_unfinished_stream_ends_quietly_at_exit(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    script = """
import sys
from audiox_diffusers import AudioXPipeline
pipe = AudioXPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
stream = pipe("rain", num_inference_steps=1, audio_length_in_s=0.02, output_type="stream").audios
print(next(stream).shape)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.startswith("(1, 2, ")
    assert "Exception ignored" not in result.stderr


def test_features_cover_one_window(pipe, generate, tmp_path):
    save_features(tmp_path / "clip.safetensors", torch.ones(4, 5, 64), None)
    assert generate(video=tmp_path / "clip.safetensors", audio_length_in_s=0.004).isfinite().all()
    with pytest.raises(ValueError, match=r"clip\.safetensors: holds the features of one window"):
        generate(video=tmp_path / "clip.safetensors")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([(0,)], r"a span must be \(start, end, text\)"),
        ([(0, 1)], r"a span must be \(start, end, text\)"),
        ([(0, float("nan"), "a")], r"a span must be \(start, end, text\)"),
        ([(0, 1, 3)], "text of a span must be"),
        ([(1, 2, "a")], "start at 0 and follow each other without gaps"),
        ([(0, 1, "a"), (2, 3, "b")], "without gaps.*after 1 s"),
        ([(0, 1, "a"), (0.5, 3, "b")], "without gaps"),
        ([(0, 0, "a")], "without gaps"),
        ([(0, 1, "a")], "spans end at 1 s, and the sound is 0.0158"),
    ],
)
def test_bad_timed_prompts(generate, prompt, message):
    with pytest.raises(ValueError, match="`prompt`.*" + message):
        generate(prompt=prompt)
    with pytest.raises(ValueError, match="`prompt`.*" + message):
        generate(prompt=["a", prompt], generator=None)
