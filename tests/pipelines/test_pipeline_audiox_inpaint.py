"""Edits keep the rest of a sound to the bit, and new parts fit."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import seeded

from audiox_diffusers import (
    AudioXDPMSolverSDEScheduler,
    AudioXFlowMatchScheduler,
    AudioXInpaintPipeline,
    AudioXMMTransformer2DModel,
    AudioXPipeline,
)
from audiox_diffusers.media import load_audio, log_mel, save_audio
from audiox_diffusers.pipelines import save_features

RATE, HOP, WINDOW = 44100, 8, 24
SAMPLES = 500  # of the sound, more than two windows of the small checkpoint


@pytest.fixture
def edit_pipe(pipe):
    edit = AudioXInpaintPipeline(**pipe.components)
    edit.set_progress_bar_config(disable=True)
    return edit


@pytest.fixture
def sound():
    return torch.randn(2, SAMPLES, generator=seeded(2)).clamp(-3, 3) / 3


@pytest.fixture
def edit(edit_pipe, sound):
    def run(seed=0, **kwargs):
        kwargs = {"audio": (sound, RATE), "num_inference_steps": 3, "output_type": "pt", "crossfade_ms": 0.0, **kwargs}
        return edit_pipe(**{"prompt": "rain", "generator": [seeded(seed)], **kwargs}).audios

    return run


@pytest.fixture(scope="module")
def gaussian(gaussian_pipe):
    """Return the editor with the Gaussian model, and 4 s from the middle of a sound that the model generates."""
    # With more noise at the last step, the result would be smoother than the process.
    edit = AudioXInpaintPipeline.from_pipe(gaussian_pipe, scheduler=AudioXDPMSolverSDEScheduler(sigma_min=0.03))
    edit.set_progress_bar_config(disable=True)
    sound = AudioXPipeline.from_pipe(edit)(
        "a", audio_length_in_s=5.0, num_inference_steps=50, guidance_scale=1.0, generator=seeded(), output_type="pt"
    ).audios[0]
    return edit, sound[:, 4000:36000]


def changed(result, sound):
    """Return the samples in which a result differs from the sound."""
    return (result != sound).any(dim=-2).nonzero()[..., -1]


def seconds(*samples):
    return tuple(sample / RATE for sample in samples)


# Inpainting


@pytest.mark.parametrize(
    "spans",
    [
        [(100, 163)],
        [(0, 30)],  # at the edges
        [(470, SAMPLES)],
        [(300, 310), (20, 90), (85, 120), (120, 130)],  # in no order, overlapping, touching
        [(50, 450)],  # longer than a window
        [(7, 8)],
    ],
)
def test_outside_the_spans_the_result_is_the_sound(edit, sound, spans):
    result = edit(inpaint_spans=[seconds(*span) for span in spans])
    assert result.shape == (1, 2, SAMPLES) and result.dtype == torch.float32
    inside = torch.zeros(SAMPLES, dtype=torch.bool)
    for start, end in spans:
        inside[start:end] = True
    assert torch.equal(result[0][:, ~inside], sound[:, ~inside])
    assert (result[0] != sound)[:, inside].float().mean() > 0.99
    assert result.isfinite().all()


def test_crossfade_lies_outside_the_span(edit, sound):
    faded = edit(inpaint_spans=[seconds(200, 260)], crossfade_ms=1000 * 20 / RATE)
    places = changed(faded[0], sound)
    assert places.min() == 180 and places.max() == 279


@pytest.mark.parametrize("spans", [[], [seconds(100, 100)]])
def test_empty_edits_return_the_sound(edit, sound, spans, caplog):
    assert torch.equal(edit(inpaint_spans=spans)[0], sound)
    assert "returned unchanged" in caplog.text
    assert torch.equal(edit(mask=torch.zeros(9))[0], sound)


def test_a_span_over_everything_is_generation(edit, edit_pipe, pipe, sound):
    """With neither known latents nor an audio prompt, the same seed gives the same sound."""
    short = sound[:, :150]
    result = edit(audio=(short, RATE), inpaint_spans=[seconds(0, 150)])
    expected = pipe(
        "rain", audio_length_in_s=150 / RATE, num_inference_steps=3, generator=[seeded()], output_type="pt"
    ).audios
    torch.testing.assert_close(result, expected)


def test_the_audio_prompt_is_the_sound_with_silenced_spans(edit, edit_pipe, sound, monkeypatch):
    prompts, encode = [], edit_pipe.encode_waveforms
    monkeypatch.setattr(
        edit_pipe, "encode_waveforms", lambda waveforms, *args: prompts.append(waveforms) or encode(waveforms, *args)
    )
    edit(audio=(sound[:, :160], RATE), inpaint_spans=[seconds(40, 80)])
    silenced = sound[:, :160].clone()
    silenced[:, 40:80] = 0
    assert torch.equal(prompts[0][0], silenced)
    prompts.clear()
    edit(strength=0.5)
    assert not prompts


@pytest.mark.parametrize(
    "scheduler",
    [
        AudioXDPMSolverSDEScheduler(),
        AudioXDPMSolverSDEScheduler(eta=0.0),
        AudioXFlowMatchScheduler(),
        AudioXFlowMatchScheduler(stochastic_sampling=True),
    ],
)
def test_known_latents_have_the_right_noise_at_every_step(edit, edit_pipe, sound, scheduler):
    """After each step, known latents are those of the sound with noise of the next level."""
    edit_pipe.scheduler = scheduler
    sound = sound.repeat(1, 8)[:, : 190 * HOP]
    with torch.no_grad():
        known = edit_pipe.vae.encode(sound[None]).latent_dist.mode()[..., 100:]
    latents = []
    edit(
        audio=(sound, RATE),
        inpaint_spans=[seconds(0, 100 * HOP - 80)],
        num_inference_steps=8,
        num_refinements=0,
        callback_on_step_end=lambda pipe, i, t, tensors: latents.append(tensors["latents"]) or {},
        guidance_scale=1.0,
    )
    for level, sample in zip(scheduler.sigmas[1:].tolist(), latents, strict=True):
        held = (
            sample[..., 100:105]
            - (1 if isinstance(scheduler, AudioXDPMSolverSDEScheduler) else 1 - level) * (known[..., :5])
        )
        assert held.std().item() == pytest.approx(level, rel=0.35, abs=1e-4)
        assert abs(held.mean().item()) < 0.5 * level + 1e-4


def test_only_windows_around_the_spans_run(edit, edit_pipe, sound):
    rows = []
    handle = edit_pipe.transformer.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    edit(audio=(sound.repeat(1, 8), RATE), inpaint_spans=[seconds(2000, 2010)], window_batch_size=100)
    handle.remove()
    assert max(rows) <= 2 * 3  # of 28 windows


def test_a_gap_fits_its_surroundings(gaussian):
    """New latents correlate with those beside the gap almost as much as those of the sound do with each other."""
    edit, sound = gaussian
    result = edit(
        (sound, 8000), "a", inpaint_spans=[(1.0, 3.0)], num_inference_steps=25, guidance_scale=1.0,
        generator=seeded(1), output_type="pt",
    ).audios  # fmt: skip
    with torch.no_grad():
        latents = edit.vae.encode(torch.nn.functional.pad(result, (0, 128 * 250 - 32000))).latent_dist.mode()[0]
    before, after = latents[:, :-1], latents[:, 1:]
    correlation = (before * after).mean(0) / (before.square().mean(0) * after.square().mean(0)).sqrt()
    assert correlation[[61, 62, 186, 187, 188]].min() > 0.7
    assert correlation[70:180].min() > 0.8


# Soft masks and variation


def test_mask_is_a_strength_over_time(edit, sound):
    hard = torch.zeros(SAMPLES)
    hard[100:200] = 1
    assert torch.equal(edit(mask=hard), edit(inpaint_spans=[seconds(100, 200)]))
    assert torch.equal(edit(mask=np.full(3, 0.5)), edit(strength=0.5))


def test_higher_mask_values_change_more(gaussian):
    edit, sound = gaussian
    result = edit(
        (sound, 8000), "a", mask=torch.linspace(0, 1, 5), crossfade_ms=0, num_inference_steps=40, guidance_scale=1.0,
        generator=seeded(1), output_type="pt",
    ).audios[0]  # fmt: skip
    error = (result - sound).square().unflatten(1, (8, 4000)).mean(dim=(0, 2))
    assert result[0, 0] == sound[0, 0] and error[:2].max() < error[3:5].mean() < error[6:].min()


def test_strength_is_the_level_to_start_from(gaussian):
    edit, sound = gaussian
    for kwargs in ({}, {"inpaint_spans": [(1.0, 2.0)]}):
        distances = []
        for strength in (0.2, 0.5, 0.8, 1.0):
            result = edit(
                (sound, 8000), "a", strength=strength, num_inference_steps=40, guidance_scale=1.0,
                generator=seeded(1), output_type="pt", **kwargs,
            ).audios[0]  # fmt: skip
            distances.append((result - sound).square().mean().item())
            times = edit.scheduler.timesteps
            first = times[-edit.num_timesteps]
            if not kwargs:
                assert abs(first - strength) <= (times - strength).abs().min() + 1e-6
        assert distances == sorted(distances) and distances[0] < distances[-1] / 4


# Completion


@pytest.mark.parametrize("extend", [1, 40, 150, 700])
@pytest.mark.parametrize("length", [5, 100, SAMPLES])
def test_extension_keeps_the_sound(edit, sound, extend, length):
    sound = sound[:, :length]
    after = edit(audio=(sound, RATE), extend_by_s=extend / RATE)[0]
    before = edit(audio=(sound, RATE), extend_by_s=-extend / RATE)[0]
    for result, kept, new in (
        (after, after[:, :length], after[:, length:]),
        (before, before[:, extend:], before[:, :extend]),
    ):
        assert result.shape == (2, length + extend) and result.isfinite().all()
        assert torch.equal(kept, sound)
        assert new.any(dim=0).all() and new.std() > 0 or extend == 1


def test_extension_is_crossfaded_in_the_sound(edit, sound):
    after = edit(extend_by_s=60 / RATE, crossfade_ms=1000 * 20 / RATE)[0]
    assert changed(after[:, :SAMPLES], sound).min() == SAMPLES - 20
    before = edit(extend_by_s=-60 / RATE, crossfade_ms=1000 * 20 / RATE)[0]
    assert changed(before[:, 60:], sound).max() == 19


def test_windows_of_an_extension_continue_the_sound(edit, edit_pipe, sound, monkeypatch):
    """The audio prompt of each window is the end of the window before, followed by silence."""
    prompts, encode = [], edit_pipe.encode_waveforms
    monkeypatch.setattr(
        edit_pipe, "encode_waveforms", lambda waveforms, *args: prompts.append(waveforms[0].clone()) or encode(waveforms, *args)
    )  # fmt: skip
    sound = sound[:, :480]
    result = edit(audio=(sound, RATE), extend_by_s=400 / RATE)[0]
    overlap = 12 * HOP
    assert len(prompts) == 5
    assert torch.equal(prompts[0][:, :overlap], sound[:, -overlap:]) and not prompts[0][:, overlap:].any()
    assert prompts[1][:, :overlap].any(dim=0).all() and not prompts[1][:, overlap:].any()
    # Samples beyond the receptive field of the edge are not decoded again.
    halo = edit_pipe.vae.tile_latent_overlap * HOP
    if overlap > halo:
        torch.testing.assert_close(prompts[1][:, : overlap - halo], result[:, 480 : 480 + overlap - halo])


def test_no_seam(gaussian):
    """
    The spectral flux at the joints of a sound, its extension and the windows of the extension stays in the range of the
    flux inside the segments. This holds for peaks averaged over seeds, in both directions. A cut exceeds the range, and
    without refinements the joints come closer to it.
    """
    edit, sound = gaussian

    def flux(waveform):
        levels = log_mel(waveform, 8000)
        return (levels[:, 1:] - levels[:, :-1]).abs().mean(dim=0)

    def extend(seed, seconds, num_refinements):
        return flux(
            edit(
                (sound, 8000), "a", extend_by_s=seconds, num_refinements=num_refinements, num_inference_steps=50,
                guidance_scale=1.0, generator=seeded(seed), output_type="pt",
            ).audios[0]
        )  # fmt: skip

    # Frames of 128 samples: the sound has 250, a window 125, of which 63 are new.
    peaks, segments = {4: [], 0: []}, [flux(sound)[10:-10]]
    for num_refinements, joints in peaks.items():
        for seed in range(4):
            after, before = extend(seed, 4.0, num_refinements), extend(seed, -4.0, num_refinements)
            places = [(after, 250), (after, 313), (after, 376), (before, 250), (before, 187), (before, 124)]
            joints.append(torch.stack([levels[place - 3 : place + 3].max() for levels, place in places]))
            if num_refinements:
                segments += [after[256:307], after[319:370], after[382:433]]
                segments += [before[193:244], before[130:181], before[67:118]]
    inside, joints, unrefined = torch.cat(segments), torch.stack(peaks[4]).mean(0), torch.stack(peaks[0]).mean(0)
    print(f"flux inside {inside.min():.3f}..{inside.max():.3f}, at joints {joints}, without refinements {unrefined}")
    assert inside.min() < joints.min() and joints.max() < inside.max()
    assert joints.mean() < unrefined.mean()
    assert flux(torch.cat((sound, -sound[:, 9000:18000]), dim=1))[247:253].max() > inside.max()


# Batches, seeds, prompts


def test_each_item_is_the_same_alone_and_in_a_batch(edit, sound, close):
    sounds = [(sound, RATE), (sound.flip(1), RATE)]
    spans = [[seconds(10, 60)], [seconds(300, 420), seconds(100, 110)]]
    batch = edit(audio=sounds, prompt=["rain", None], inpaint_spans=spans, generator=[seeded(0), seeded(1)])
    longer = edit(audio=sounds, prompt=["rain", None], extend_by_s=0.002, generator=[seeded(0), seeded(1)])
    for i, prompt in enumerate(["rain", None]):
        close(batch[i], edit(i, audio=sounds[i], prompt=prompt, inpaint_spans=spans[i])[0], 1e-3)
        close(longer[i], edit(i, audio=sounds[i], prompt=prompt, extend_by_s=0.002)[0], 1e-3)


@pytest.mark.parametrize("other", [[], [seconds(0, SAMPLES)]])
def test_edits_of_other_items_change_nothing(edit, sound, close, other):
    sounds = [(sound, RATE), (sound.flip(1), RATE)]
    spans = [[seconds(300, 420)], other]
    batch = edit(audio=sounds, inpaint_spans=spans, generator=[seeded(0), seeded(1)])
    for i in range(2):
        close(batch[i], edit(i, audio=sounds[i], inpaint_spans=spans[i])[0], 1e-3)


def test_spans_may_be_lists_of_two_numbers(edit):
    span = (seconds(100, 180)[0], seconds(100, 180)[1])
    assert torch.equal(edit(inpaint_spans=[list(span)]), edit(inpaint_spans=[span]))


@pytest.mark.parametrize("what", [{"extend_by_s": 0.001}, {"inpaint_spans": [(0.0105, 0.011)]}])
def test_features_cover_one_window(edit, tmp_path, what):
    save_features(tmp_path / "clip.safetensors", torch.ones(4, 5, 64), None)
    with pytest.raises(ValueError, match=r"`video` .*clip\.safetensors: holds the features of one window"):
        edit(video=tmp_path / "clip.safetensors", **what)


def test_batch_with_the_same_spans(edit, sound, close):
    sounds = [(sound, RATE), (sound.flip(1), RATE)]
    batch = edit(audio=sounds, inpaint_spans=[seconds(300, 420)], generator=[seeded(0), seeded(1)])
    for i in range(2):
        close(batch[i], edit(i, audio=sounds[i], inpaint_spans=[seconds(300, 420)])[0], 1e-4)


def test_several_waveforms_and_seeds(edit, close):
    results = edit(inpaint_spans=[seconds(100, 200)], num_waveforms_per_prompt=2, generator=[seeded(0), seeded(1)])
    assert results.shape == (2, 2, SAMPLES) and (results[0] != results[1]).any()
    close(results[:1], edit(inpaint_spans=[seconds(100, 200)]), 1e-3)
    assert torch.equal(edit(strength=0.5), edit(strength=0.5))
    assert not torch.equal(edit(strength=0.5), edit(1, strength=0.5))


def test_every_prompt_changes_the_result(edit):
    results = [
        edit(inpaint_spans=[seconds(50, 450)], **prompts)
        for prompts in (
            {},
            {"prompt": "wind"},
            {"prompt": None},
            {"negative_prompt": "wind"},
            {"prompt": [(0, 0.005, "rain"), (0.005, SAMPLES / RATE, "wind")]},
            {"video": torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)},
        )
    ]
    for i, result in enumerate(results):
        assert all((result - other).abs().max() > 1e-3 for other in results[:i])


def test_stream(edit, sound):
    whole = edit(inpaint_spans=[seconds(100, 200)], output_type="np")
    pieces = list(edit(inpaint_spans=[seconds(100, 200)], output_type="stream"))
    assert np.array_equal(np.concatenate(pieces, axis=-1), whole)


# The pipeline


def test_sharing_components(pipe, tmp_path, sound, edit):
    expected = edit(inpaint_spans=[seconds(100, 200)])
    pipe.register_to_config(default_num_inference_steps=4)
    shared = AudioXInpaintPipeline.from_pipe(pipe)
    assert shared.transformer is pipe.transformer and shared.config.default_num_inference_steps == 4
    assert type(AudioXPipeline.from_pipe(shared)) is AudioXPipeline
    shared.save_pretrained(tmp_path)
    for cls in (DiffusionPipeline, AudioXInpaintPipeline):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is AudioXInpaintPipeline
        loaded.set_progress_bar_config(disable=True)
        result = loaded(
            (sound, RATE), "rain", inpaint_spans=[seconds(100, 200)], num_inference_steps=3, crossfade_ms=0.0,
            generator=[seeded()], output_type="pt",
        ).audios  # fmt: skip
        assert torch.equal(result, expected)


def test_from_pipe_casts_nothing(pipe):
    pipe.transformer.to(torch.bfloat16)
    shared = AudioXInpaintPipeline.from_pipe(pipe)
    assert pipe.transformer.dtype == shared.transformer.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float32
    AudioXInpaintPipeline.from_pipe(pipe, dtype=torch.float32)
    assert pipe.transformer.dtype == torch.float32


def test_model_cpu_offload(edit, edit_pipe):
    expected = edit(inpaint_spans=[seconds(100, 200)])
    longer = edit(extend_by_s=0.01)
    edit_pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(edit(inpaint_spans=[seconds(100, 200)]), expected)
    assert torch.equal(edit(extend_by_s=0.01), longer)


def test_callback_and_interrupt(edit, sound):
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return tensors

    result = edit(inpaint_spans=[seconds(100, 200)], callback_on_step_end=stop)
    assert steps == [0] and torch.equal(result[0][:, :100], sound[:, :100])


def test_a_call_changes_nothing(edit, edit_pipe, sound):
    before = {name: id(component) for name, component in edit_pipe.components.items()}
    original, tiling = sound.clone(), edit_pipe.vae.use_tiling
    torch.manual_seed(5)
    state = torch.get_rng_state()
    edit(inpaint_spans=[seconds(100, 200)])
    edit(extend_by_s=0.01)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(sound, original)
    assert before == {name: id(component) for name, component in edit_pipe.components.items()}
    assert edit_pipe.vae.use_tiling == tiling


def test_a_model_whose_weights_fix_the_window(edit, edit_pipe, sound):
    edit_pipe.transformer = AudioXMMTransformer2DModel(
        sample_size=WINDOW, in_channels=8, num_layers=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_input_dim=64, num_context_tokens=36, ff_inner_dim=32,
    ).eval()  # fmt: skip
    edit_pipe.scheduler = AudioXFlowMatchScheduler(stochastic_sampling=True)
    # Guidance would let random weights amplify what they hear of themselves beyond all bounds.
    kwargs = {"num_inference_steps": 4, "guidance_scale": 1.0}
    result = edit(inpaint_spans=[seconds(50, 450)], **kwargs)[0]
    assert set(changed(result, sound).tolist()) <= set(range(50, 450))
    assert edit(extend_by_s=0.01, **kwargs).shape == (1, 2, 941)


# Files, and refused arguments


def test_files_are_converted_with_a_warning(edit, tmp_path, caplog):
    mono = torch.randn(1, 4000, generator=seeded()).clamp(-3, 3) / 4
    save_audio(tmp_path / "sound.wav", mono, 22050)
    converted, _ = load_audio(tmp_path / "sound.wav", sampling_rate=RATE, channels=2)
    result = edit(audio=tmp_path / "sound.wav", inpaint_spans=[(0.01, 0.011)])[0]
    assert result.shape == (2, 8000)
    places = changed(result, converted)
    assert places.min() >= 441 and places.max() < 486
    assert "22050 Hz and 1 channels, converted to the model's 44100 Hz and 2" in caplog.text


SOUND = torch.zeros(2, 441) + 0.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "Give one of `inpaint_spans`"),
        ({"inpaint_spans": [(0, 0.001)], "extend_by_s": 1}, "Give one of.*got `inpaint_spans`, `extend_by_s`"),
        ({"extend_by_s": 1, "strength": 0.5}, "Give one of.*got `extend_by_s`, `strength`"),
        ({"mask": [0, 1], "strength": 0.5}, "Give one of.*got `mask`, `strength`"),
        ({"inpaint_spans": (0, 1)}, "`inpaint_spans` must be a list"),
        ({"inpaint_spans": [0, 1]}, "`inpaint_spans` must be a list"),
        ({"inpaint_spans": [(0, 1, 2)]}, "two numbers of seconds"),
        ({"inpaint_spans": [("0", "1")]}, "two numbers of seconds"),
        ({"inpaint_spans": [(float("nan"), 0.001)]}, "two numbers of seconds"),
        ({"inpaint_spans": [(0, float("inf"))]}, "two numbers of seconds"),
        ({"inpaint_spans": [(0.005, 0.001)]}, "must not end before it starts"),
        ({"inpaint_spans": [(0.005, 0.02)]}, "sound is 0.01 s long"),
        ({"inpaint_spans": [(-0.1, 0.005)]}, "sound is 0.01 s long"),
        ({"inpaint_spans": [(1, 2)]}, "sound is 0.01 s long"),
        ({"inpaint_spans": [[(0, 0.001)], []]}, "list for 2 sounds, and there are 1"),
        ({"mask": [0, 1.5]}, "`mask` must lie in 0..1"),
        ({"mask": [0, float("nan")]}, "`mask` must lie in 0..1"),
        ({"mask": torch.zeros(2, 3)}, "`mask` must have the shape"),
        ({"mask": "x"}, "`mask` must be numbers"),
        ({"strength": 1, "audio": ()}, "`audio` must be a path or"),
        ({"strength": 1, "window_overlap_in_s": "1"}, "`window_overlap_in_s`"),
        ({"extend_by_s": 0}, "`extend_by_s`"),
        ({"extend_by_s": float("nan")}, "`extend_by_s`"),
        ({"strength": 0}, "`strength` must be above 0"),
        ({"strength": 1.1}, "`strength` must be above 0"),
        ({"strength": float("nan")}, "`strength` must be above 0"),
        ({"strength": 1, "crossfade_ms": -1}, "`crossfade_ms`"),
        ({"strength": 1, "crossfade_ms": 100}, "`crossfade_ms` must be in 0..1.088 ms"),
        ({"strength": 1, "num_refinements": -1}, "`num_refinements`"),
        ({"strength": 1, "audio": None}, "`audio` is the sound to edit"),
        ({"strength": 1, "audio": [(SOUND, RATE), None]}, "`audio` is the sound to edit"),
        ({"strength": 1, "audio": SOUND}, "`audio` must be a path or"),
        ({"strength": 1, "audio": (SOUND * float("nan"), RATE)}, "NaN"),
        ({"strength": 1, "audio": (SOUND, 48000)}, "at 48000 Hz, and the model at 44100 Hz"),
        ({"strength": 1, "audio": (SOUND[:1], RATE)}, r"model's 2 channels.*\[1, 441\]"),
        ({"strength": 1, "audio": (SOUND[0], RATE)}, r"model's 2 channels.*\[1, 441\]"),
        ({"strength": 1, "audio": [(SOUND, RATE), (SOUND[:, 1:], RATE)]}, "equally long"),
        ({"strength": 1, "audio": "nowhere.wav"}, "nowhere.wav"),
        ({"strength": 1, "output_type": "mp3"}, "`output_type` must be one of np, pt, latent, stream"),
        ({"strength": 1, "window_overlap_in_s": 1}, "`window_overlap_in_s`"),
        ({"strength": 1, "prompt": [(0, 1, "a")]}, "spans end at 1 s"),
        ({"strength": 1, "generator": [seeded()] * 2}, "`generator` is a list of 2"),
        ({"strength": 1, "num_inference_steps": 0}, "`num_inference_steps`"),
    ],
)
def test_bad_input(edit_pipe, kwargs, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        edit_pipe(**{"audio": (SOUND, RATE), "num_inference_steps": 1, "crossfade_ms": 0, **kwargs})


# Latents, and what diffusers' own tests ask of a pipeline


@pytest.mark.parametrize(
    ("kwargs", "lead", "new"),
    [
        ({"inpaint_spans": [seconds(100, 200)]}, 0, slice(100, 200)),
        ({"inpaint_spans": [seconds(100, 200)], "strength": 0.5}, 0, slice(100, 200)),
        ({"mask": [0.0] * 100 + [0.7] * 100 + [0.0] * 300}, 0, slice(100, 200)),
        ({"strength": 0.6}, 0, slice(0, SAMPLES)),
        # 500 samples end with a frame if the grid begins 4 samples before them; 100 samples take 13 frames.
        ({"extend_by_s": 100 / RATE}, 4, slice(504, 604)),
        ({"extend_by_s": -100 / RATE}, 104, slice(4, 104)),
        ({"inpaint_spans": []}, 0, slice(0, 0)),
    ],
)
def test_latents_are_those_of_the_result(edit, edit_pipe, sound, kwargs, lead, new):
    """
    Decoded, they are the result where that is new. Elsewhere they are the latents of the input, which begins `lead`
    samples after them.
    """
    result = edit(**kwargs)[0]
    latents = edit(output_type="latent", **kwargs)
    first = new.start if "extend_by_s" in kwargs and lead > 4 else lead
    assert latents.shape[:2] == (1, 8) and latents.shape[2] == -(-(first + result.shape[1]) // HOP)
    with torch.no_grad():
        decoded = edit_pipe.vae.decode(latents).sample[0]
        padded = torch.nn.functional.pad(sound, (lead, -(lead + SAMPLES) % HOP))
        known = edit_pipe.vae.encode(padded[None]).latent_dist.mode()
    difference = decoded[:, new] - result[:, new.start - first : new.stop - first]
    assert not difference.numel() or difference.abs().max() < 1e-3 * decoded[:, new].abs().max()
    if kwargs != {"strength": 0.6}:
        kept = slice(lead // HOP + 26, lead // HOP + 38)
        torch.testing.assert_close(latents[..., kept], known[..., kept], rtol=1e-3, atol=1e-3)


def test_latents_of_a_short_sound_fill_a_window(edit, sound):
    assert edit(audio=(sound[:, :100], RATE), strength=0.5, output_type="latent").shape == (1, 8, WINDOW)


def test_guidance_that_a_callback_changes_is_reset_before_each_pass_only(edit, edit_pipe):
    seen = []

    def increase(pipe, i, t, tensors):
        seen.append(pipe.guidance_scale)
        pipe._guidance_scale += 1.0
        return tensors

    edit(inpaint_spans=[seconds(100, 200)], guidance_scale=2.0, num_refinements=1, callback_on_step_end=increase)
    assert seen[:4] == [2.0, 3.0, 4.0, 2.0]
    assert edit_pipe.guidance_scale == 2.0 + edit_pipe.num_timesteps


def test_the_current_time_is_known_during_a_call(edit, edit_pipe, pipe):
    times = []
    assert edit_pipe.current_timestep is None
    edit(
        inpaint_spans=[seconds(100, 200)],
        callback_on_step_end=lambda pipe, i, t, tensors: times.append(pipe.current_timestep is t),
    )
    assert times and all(times) and edit_pipe.current_timestep is None
    with pytest.raises(ZeroDivisionError):
        edit(strength=0.5, callback_on_step_end=lambda *args: 1 / 0)
    assert edit_pipe.current_timestep is None
