import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import MediaBytes, load_audio, save_audio
from audiox_diffusers.testing import HOP_LENGTH, NUM_FRAMES, SAMPLING_RATE
from audiox_diffusers.training import parse_args
from audiox_diffusers.training.validation import Validation

WINDOW = NUM_FRAMES * HOP_LENGTH


@pytest.fixture(scope="module")
def pipe(small_model) -> AudioXPipeline:
    return AudioXPipeline.from_pretrained(small_model)


@pytest.fixture
def accelerator() -> Accelerator:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True)


@pytest.fixture
def media(tmp_path, scenes) -> Path:
    """A folder with a clip, an image and an audio file."""
    (tmp_path / "clip.mp4").write_bytes((scenes / "00000.mp4").read_bytes())
    Image.new("RGB", (40, 30), (255, 0, 128)).save(tmp_path / "red.png")
    save_audio(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(WINDOW // 2, dtype=np.float32)), SAMPLING_RATE)
    return tmp_path


@pytest.fixture
def prompts(media):
    """`prompts(*lines)` writes a prompt file beside the media."""

    def write(*lines: dict) -> Path:
        path = media / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def validation(tmp_path):
    def build(path: Path, *options: object) -> Validation:
        needed = ["--pretrained_model_name_or_path", "m", "--dataset", "d", "--max_train_steps", 1]
        needed += ["--output_dir", tmp_path / "out", "--validation_inference_steps", 2, "--validation_prompts", path]
        return Validation(parse_args([str(word) for word in (*needed, *options)]))

    return build


EVERY_KIND = (
    {"prompt": "a bell"},
    {"video": "clip.mp4"},
    {"image": "red.png", "prompt": "a picture", "length": 0.5},
    {"audio": "tone.wav", "negative_prompt": "noise", "seed": 7},
)


def sound_of(file: Path) -> np.ndarray:
    waveform, rate = load_audio(file)
    assert rate == SAMPLING_RATE
    return waveform.numpy()


def test_each_line_gives_audio_and_a_spectrogram(validation, prompts, pipe, accelerator, media, tmp_path):
    files = validation(prompts(*EVERY_KIND), "--validation_guidance_scale", 2).run(pipe, accelerator, 3)
    folder = tmp_path / "out" / "validation" / "step-3"
    assert files == [folder / f"{number:03}.wav" for number in (1, 2, 3, 4)]
    assert {path.name for path in folder.iterdir()} == {
        f"{number:03}.{suffix}" for number in (1, 2, 3, 4) for suffix in ("wav", "png")
    }
    assert [sound_of(file).shape for file in files] == [(1, WINDOW), (1, WINDOW), (1, SAMPLING_RATE // 2), (1, WINDOW)]
    requests = [
        {"prompt": "a bell"},
        {"video": media / "clip.mp4"},
        {"prompt": "a picture", "image": media / "red.png", "audio_length_in_s": 0.5},
        {"audio": media / "tone.wav", "negative_prompt": "noise"},
    ]
    for file, request, seed in zip(files, requests, (0, 1, 2, 7), strict=True):
        generator = [torch.Generator().manual_seed(seed)]
        (sound,) = pipe(**request, num_inference_steps=2, guidance_scale=2.0, generator=generator).audios
        # 16 bits.
        assert np.abs(sound_of(file) - np.clip(sound, -1, 1)).max() < 1e-4
        assert Image.open(file.with_suffix(".png")).height == 256


def test_audio_is_the_same_at_every_step(validation, prompts, pipe, accelerator):
    made = validation(prompts(*EVERY_KIND))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = made.run(pipe, accelerator, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = made.run(pipe, accelerator, 2)
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in first]
    assert len({file.read_bytes() for file in first}) == 4
    other = validation(prompts(*({**line, "seed": 9} for line in EVERY_KIND))).run(pipe, accelerator, 3)
    for file, one in zip(other, first, strict=True):
        assert file.read_bytes() != one.read_bytes()


def test_defaults_come_from_the_pipeline(validation, prompts, pipe, accelerator):
    made = validation(prompts({"prompt": "a bell", "length": 0.1}))
    made.args.validation_inference_steps = None
    (file,) = made.run(pipe, accelerator, 1)
    (sound,) = pipe("a bell", audio_length_in_s=0.1, generator=[torch.Generator().manual_seed(0)]).audios
    assert np.abs(sound_of(file) - np.clip(sound, -1, 1)).max() < 1e-4


def test_validation_does_not_change_training_and_reaches_tensorboard(train, prompts, tmp_path):
    # T5 has dropout, which draws from the global random state.
    options = ["--train_text_encoder", "--use_ema"]
    plain = train("plain", 2, *options)
    reports = ["--validation_prompts", prompts(*EVERY_KIND), "--validation_inference_steps", 2]
    validated = train("out", 2, *options, *reports, "--validation_steps", 1, "--report_to", "tensorboard")
    assert validated == plain

    folder = tmp_path / "out" / "validation"
    assert {path.name for path in folder.iterdir()} == {"step-1", "step-2"}
    events = EventAccumulator(str(tmp_path / "out" / "logs" / "audiox"), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["audio"] == [f"validation/{number:03}" for number in (1, 2, 3, 4)]
    assert tags["images"] == [f"validation/{number:03}/spectrogram" for number in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        for event in events.Audio(f"validation/{number:03}"):
            file = folder / f"step-{event.step}" / f"{number:03}.wav"
            waveform, _ = load_audio(MediaBytes(event.encoded_audio_string, "event.wav"))
            assert event.sample_rate == SAMPLING_RATE
            assert np.abs(waveform.numpy() - sound_of(file)).max() < 1e-4
        pictures = events.Images(f"validation/{number:03}/spectrogram")
        assert [picture.step for picture in pictures] == [1, 2]
        for picture in pictures:
            file = folder / f"step-{picture.step}" / f"{number:03}.png"
            shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)).convert("RGB"))
            assert np.array_equal(shown, np.asarray(Image.open(file)))
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx(plain)


def test_validation_reaches_wandb(validation, prompts, pipe, accelerator, monkeypatch):
    media = {kind: lambda data, kind=kind, **options: (kind, data, options) for kind in ("Audio", "Image")}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**media))
    logged = []
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: logged.append((values, step)))
    accelerator.trackers = [tracker]
    (file,) = validation(prompts({"prompt": "a bell"})).run(pipe, accelerator, 5)
    ((values, step),) = logged
    assert step == 5
    kind, sound, options = values["validation/001"]
    assert (kind, options) == ("Audio", {"sample_rate": SAMPLING_RATE, "caption": "a bell"})
    assert sound.shape == (WINDOW, 1) and np.abs(sound.T.clip(-1, 1) - sound_of(file)).max() < 1e-4
    kind, picture, options = values["validation/001/spectrogram"]
    assert (kind, options, picture.shape[2]) == ("Image", {"caption": "a bell"}, 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, "give at least one of prompt, video, image and audio"),
        ({"seed": 3, "negative_prompt": "noise"}, "give at least one of prompt, video, image and audio"),
        ({"video": "clip.mp4", "image": "red.png"}, "give either video or image, not both"),
        ({"promt": "a"}, "unknown key 'promt'"),
        ({"prompt": "a", "length": 0}, "length must be above 0 and at most 86400 seconds, got 0"),
        ({"prompt": "a", "length": float("nan")}, "length must be above 0 and at most 86400 seconds, got nan"),
        ({"prompt": "a", "seed": -1}, r"seed must be in 0..2\*\*64 - 1, got -1"),
        ({"prompt": "a", "seed": 2**64}, "seed must be in"),
        ({"video": "missing.mp4"}, "missing.mp4: no such file"),
        ({"audio": "."}, "a folder, not a media file"),
        ({"video": "prompts.jsonl"}, "prompts.jsonl: not a sound or video file"),
        ({"video": "tone.wav"}, "tone.wav: has no video stream"),
        ({"image": "tone.wav"}, "tone.wav"),
        ({"audio": "red.png"}, "red.png"),
        ({"video": "missing.safetensors"}, "missing.safetensors: no such file"),
    ],
)
def test_bad_lines_are_refused_before_training(validation, prompts, line, said):
    with pytest.raises(ValueError, match=f"prompts.jsonl, line 2: .*{said}"):
        validation(prompts({"prompt": "a"}, line))


def test_missing_prompt_file(train, tmp_path):
    with pytest.raises(FileNotFoundError, match="--validation_prompts .*nowhere.jsonl: no such file"):
        train("out", 1, "--validation_prompts", tmp_path / "nowhere.jsonl")


def test_failing_line_is_skipped(validation, prompts, pipe, accelerator, media, caplog):
    path = prompts({"prompt": "a", "length": 1e-6}, {"video": "clip.mp4"}, {"prompt": "b"})
    made = validation(path)
    (media / "clip.mp4").unlink()
    with caplog.at_level(logging.WARNING):
        files = made.run(pipe, accelerator, 1)
    assert [file.name for file in files] == ["003.wav"]
    (length, video) = [
        record.getMessage() for record in caplog.records if "validation at step 1" in record.getMessage()
    ]
    assert "line 1" in length and "`audio_length_in_s` must be a number of seconds, at least one sample" in length
    assert "line 2" in video and "clip.mp4: no such file" in video


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), KeyError("x")], ids=repr)
def test_any_error_skips_one_line(validation, prompts, pipe, accelerator, monkeypatch, caplog, error):
    made = validation(prompts({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))
    call = type(pipe).__call__

    def fail(self, *args, **prompts):
        if prompts["prompt"] == "b":
            raise error
        return call(self, *args, **prompts)

    monkeypatch.setattr(type(pipe), "__call__", fail)
    with caplog.at_level(logging.WARNING):
        files = made.run(pipe, accelerator, 1)
    assert [file.name for file in files] == ["001.wav", "003.wav"]
    assert any("line 2 of the prompts" in record.getMessage() for record in caplog.records)


def test_nan_from_the_model_is_warned_about(validation, prompts, accelerator, small_model, caplog):
    pipe = AudioXPipeline.from_pretrained(small_model)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.fill_(torch.nan)
    validation(prompts({"prompt": "a"})).run(pipe, accelerator, 1)
    assert any("NaN" in record.getMessage() for record in caplog.records)
