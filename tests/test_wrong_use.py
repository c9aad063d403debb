"""Wrong arguments of the command line and of Python are refused at once, by name, and nothing is overwritten."""

import json
import os
import stat

import numpy as np
import pytest
import torch
from helpers import normal, refused

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from audiox_diffusers.cli import main
from audiox_diffusers.evaluation.statistics import GaussianStatistics
from audiox_diffusers.evaluation.statistics_files import check_statistics, load_statistics, save_statistics
from audiox_diffusers.media import MediaBytes, MediaError, load_audio, save_audio, save_video

RATE = 16_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a sound, an empty folder, a folder of another model and a text file."""
    monkeypatch.chdir(tmp_path)
    save_audio("a.wav", 0.1 * torch.ones(1, RATE), RATE)
    for name in ("empty", "sounds", "other"):
        (tmp_path / name).mkdir()
    save_audio("sounds/a.wav", 0.1 * torch.ones(1, RATE), RATE)
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "text").write_text("text")
    return tmp_path


WRONG = {
    "generate -o out.wav --prompt '  '": ["prompt is blank"],
    "generate -o out.wav --prompt=": ["prompt is blank"],
    "generate -o out.wav --prompt rain --model other": [
        "--model other",
        "a StableDiffusionPipeline, not an AudioX model",
    ],
    "generate -o out.wav --prompt rain --model audiox-tinny": ["--model audiox-tinny: no such folder", "audiox-tiny,"],
    "features video.mp4 -o out.safetensors --model ./a/b": [
        "--model ./a/b: no such folder, and no model of that name"
    ],
    "bench --model audiox_turbo": ["--model audiox_turbo: no such folder", "audiox-turbo"],
    "serve --port 0 --model audiox-tiny nosuch": ["--model nosuch: no such folder", "a Hub id such as OWNER/NAME"],
    "serve --port 0 --lora nosuch": ["--lora nosuch: no such file or folder"],
    "export nosuch out": ["--model nosuch: no such folder, and no model of that name"],
    "export other out": ["a StableDiffusionPipeline, not an AudioX model"],
    "export audiox-tiny out --like nosuch": ["--like nosuch: no such file or folder"],
    "export audiox-tiny out --fuse-lora nosuch": ["--fuse-lora nosuch: no such file or folder"],
    "export audiox-tiny out --fuse-lora ./a/b": ["--fuse-lora ./a/b: no such file or folder"],
    "convert audiox-tiny out": ["is a diffusers model already"],
    "convert x.ckpt out --vae nosuch": ["--vae nosuch: no such file"],
    "convert x.ckpt out --synchformer nosuch": ["--synchformer nosuch: no such file"],
    "bench --sounds nosuch": ["--sounds nosuch: no such folder"],
    "bench --clips empty": ["--clips empty: an empty folder"],
    "bench --clips sounds --tasks text": ["--clips is for the task vae"],
    "evaluate sounds --steps 4": ["--steps is for the sounds that --set generates"],
    "evaluate sounds --seed 4": ["--seed is for the sounds that --set generates"],
    "evaluate sounds --reference a.wav": ["--reference a.wav: neither a folder nor a .npz file"],
    "evaluate sounds --cache a.wav": ["--cache a.wav: not a folder"],
    "evaluate sounds --save-statistics s.txt": ["--save-statistics s.txt: must be a .npz file"],
    "demo --output sounds": ["--output sounds: not an empty folder, and no demo"],
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_commands_are_refused_before_a_model_is_loaded(folder, command, capsys, monkeypatch):
    import shlex

    from audiox_diffusers import AudioXPipeline

    monkeypatch.setattr(AudioXPipeline, "from_pretrained", lambda *a, **k: pytest.fail("a model is loaded"))
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(words in error for words in WRONG[command]), error
    assert sorted(folder.rglob("*")) == before


def test_a_line_that_is_no_json_is_named_once(folder, capsys):
    (folder / "lines.jsonl").write_text('{"prompt": "rain"}\nrain\n')
    assert main(["generate", "--batch", "lines.jsonl", "--output", "out", "--steps", "1", "--length", "0.1"]) == 2
    assert "line 2: not JSON (Expecting value at character 1)" in capsys.readouterr().err


def test_overwriting_keeps_permissions_and_links(folder):
    os.chmod("a.wav", 0o600)
    (folder / "link.wav").symlink_to("a.wav")
    save_audio("link.wav", 0.5 * torch.ones(1, RATE), RATE)
    assert (folder / "link.wav").is_symlink()
    assert stat.S_IMODE((folder / "a.wav").stat().st_mode) == 0o600
    assert load_audio("a.wav")[0].max() > 0.4
    (folder / "broken.wav").symlink_to("nowhere.wav")
    save_audio("broken.wav", 0.5 * torch.ones(1, RATE), RATE)
    assert not (folder / "broken.wav").is_symlink()


@pytest.mark.parametrize("limit", ["max_bytes", "max_duration", "max_channels"])
def test_small_files_of_long_sounds_are_limited(folder, limit):
    """Silence compresses to almost nothing: a minute of 8 channels is a few kilobytes of FLAC."""
    save_audio("silent.flac", torch.zeros(8, 60 * RATE), RATE)
    assert (folder / "silent.flac").stat().st_size < 100_000
    value = {"max_bytes": 4 * 8 * 59 * RATE, "max_duration": 59, "max_channels": 7}[limit]
    with pytest.raises(MediaError, match=f"silent.flac.*`{limit}`"):
        load_audio("silent.flac", **{limit: value})
    waveform, _ = load_audio(
        "silent.flac", start=58, **({"max_bytes": 4 * 8 * 3 * RATE} if limit == "max_bytes" else {})
    )
    assert waveform.shape == (8, 2 * RATE)


def test_a_limit_counts_the_channels_that_are_kept(folder):
    save_audio("silent.flac", torch.zeros(8, 10 * RATE), RATE)
    data = MediaBytes((folder / "silent.flac").read_bytes())
    assert load_audio(data, channels=1, max_bytes=4 * 11 * RATE)[0].shape == (1, 10 * RATE)


@pytest.mark.parametrize(
    "write",
    [
        lambda: save_audio("q.wav", [1.0, 2.0], RATE),
        lambda: save_audio("q.wav", "abc", RATE),
        lambda: save_audio("q.wav", None, RATE),
        lambda: save_video("q.mp4", None),
        lambda: save_video("q.mp4", torch.zeros(2, 3, 8, 8), fps=1e9),
        lambda: load_audio("a.wav", channels=True),
    ],
)
def test_wrong_types_are_refused_by_name(folder, write):
    with pytest.raises(ValueError, match="`(waveform|video|fps|channels)`"):
        write()
    assert not list(folder.glob("q.*"))


def test_statistics_files_are_checked(tmp_path):
    good = GaussianStatistics.of(normal(9, 4).numpy())
    save_statistics(tmp_path / "good.npz", {"vggish": good, "clap": GaussianStatistics.of(normal(1, 4).numpy())})
    check_statistics(tmp_path / "good.npz")
    np.testing.assert_allclose(load_statistics(tmp_path / "good.npz", "vggish").mean, good.mean)
    with refused("good.npz: has no statistics of clap"):
        load_statistics(tmp_path / "good.npz", "clap")

    data = (tmp_path / "good.npz").read_bytes()
    damaged = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "flipped": data[:90] + bytes(byte ^ 255 for byte in data[90:110]) + data[110:],
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with refused(f"{name}.npz: not a file of statistics"):
            load_statistics(tmp_path / f"{name}.npz", "vggish")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    wrong = {
        "shapes": {"mu": np.zeros(4), "cov": np.eye(3)},
        "nan": {"mu": np.array([np.nan]), "cov": np.eye(1)},
        "count": {"vggish.mu": np.zeros(2), "vggish.cov": np.eye(2), "vggish.n": np.arange(3)},
    }
    for name, arrays in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for name in ("array", *wrong):
        with refused(f"{name}.npz: not a file of statistics"):
            load_statistics(tmp_path / f"{name}.npz", "vggish")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with refused("other.npz: has no statistics of any network"):
        check_statistics(tmp_path / "other.npz")


@pytest.mark.parametrize("scheduler_class", [AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler])
def test_schedulers_refuse_what_does_not_fit(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(3)
    with refused("`timestep` 0.123 is not one of the scheduler's `timesteps`"):
        scheduler.step(normal(1, 2, 3), 0.123, normal(1, 2, 3))
    with refused("`model_output` must have the shape of `sample`, [1, 2, 3], got [1, 2, 1]"):
        scheduler.step(normal(1, 2, 1), scheduler.timesteps[0], normal(1, 2, 3))
    scheduler.step(normal(1, 2, 3), scheduler.timesteps[0].half(), normal(1, 2, 3))
    with refused("`sigmas` must be a list of numbers, got 'abc'"):
        scheduler.set_timesteps(sigmas="abc")
    with refused("exactly one of `num_inference_steps` and `sigmas`"):
        scheduler.set_timesteps()
