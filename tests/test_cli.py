"""The `audiox` command: what it writes, what it says, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import audiox_diffusers
from audiox_diffusers import AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.commands import batch, convert, features, generate
from audiox_diffusers.media import load_audio, load_video, save_audio, save_video
from audiox_diffusers.pipelines import load_features, save_features

RATE = 44100
WINDOW = 192  # samples of the small model's window


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer, fixtures_path) -> list[str]:
    """The small checkpoint as arguments of `audiox convert`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    released = fixtures_path / "audiox"
    return [
        str(released),
        *("--text-encoder", str(released / "text_encoder")),
        *("--tokenizer", str(folder)),
        *("--image-encoder-config", str(released / "image_encoder")),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory, source) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "audiox-small"
    assert main(["convert", source[0], str(folder), *source[1:]]) == 0
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A video of 0.6 s, a picture and a sound."""
    folder = tmp_path_factory.mktemp("media")
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    tone = 0.5 * np.sin(np.arange(WINDOW) * 0.1, dtype=np.float32)
    save_video(folder / "video.mp4", frames, tone, RATE, fps=10)
    Image.fromarray(frames[0]).save(folder / "image.png")
    save_audio(folder / "audio.wav", tone, RATE)
    (folder / "text.mp4").write_text("no video")
    (folder / "text.safetensors").write_text("no features")
    save_file({"audio": torch.zeros(1)}, folder / "other.safetensors")
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def sync_release(tmp_path_factory, fixtures_path) -> Path:
    """The small checkpoint, with sync tokens, and without the VAE; that and Synchformer lie elsewhere."""
    folder = tmp_path_factory.mktemp("sync")
    config = json.loads((fixtures_path / "audiox/config.json").read_text())
    config["model"]["conditioning"]["configs"][0]["type"] = "clip-with-sync-w-empty-feat"
    state_dict = torch.load(fixtures_path / "audiox/model.ckpt", weights_only=True)["state_dict"]
    vae = {key: tensor for key, tensor in state_dict.items() if key.startswith("pretransform.")}
    state_dict = {key: tensor for key, tensor in state_dict.items() if "pretransform." not in key}
    video = "conditioner.conditioners.video_prompt."
    state_dict[video + "proj_sync.weight"] = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    state_dict[video + "proj_sync.bias"] = torch.zeros(6)
    state_dict[video + "sync_weight"] = torch.tensor(1.0)

    (folder / "release").mkdir()
    (folder / "release/config.json").write_text(json.dumps(config))
    torch.save({"state_dict": state_dict}, folder / "release/model.ckpt")
    torch.save({"state_dict": vae}, folder / "oobleck.ckpt")
    torch.save(load_file(fixtures_path / "synchformer/state_dict.safetensors"), folder / "synchformer.pth")
    return folder


@pytest.fixture(scope="module")
def sync_model(sync_release, source) -> Path:
    files = ["--vae", str(sync_release / "oobleck.ckpt"), "--synchformer", str(sync_release / "synchformer.pth")]
    command = ["convert", str(sync_release / "release"), str(sync_release / "audiox-sync"), *source[1:], *files]
    assert main(command) == 0
    return sync_release / "audiox-sync"


@pytest.fixture
def encode(model, tmp_path):
    """Run `audiox features` on the small model; the file it wrote."""

    def run(*args: object) -> Path:
        path = tmp_path / "video.safetensors"
        assert main([str(word) for word in ["features", "--model", model, "-o", path, *args]]) == 0
        return path

    return run


@pytest.fixture
def make_sound(model, out):
    """Run `audiox generate` on the small model, quietly levelled: its sound is far beyond full scale."""

    def run(*args: object, output: str = "sound.wav") -> bytes:
        command = [
            "generate",
            "--model",
            model,
            "--steps",
            3,
            "--normalize",
            "--no-metadata",
            *args,
            "--output",
            out / output,
        ]
        assert main([str(word) for word in command]) == 0
        path = out / output
        return path.read_bytes() if path.exists() else b""

    return run


def picture_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Help and wrong arguments


COMMANDS = ("generate", "edit", "info", "features", "convert", "demo", "bench", "evaluate")
# Fails if anything heavy is imported.
LIGHT = """
import sys
from audiox_diffusers.cli import main
for name in ("torch", "numpy", "av", "diffusers", "transformers"):
    sys.modules[name] = None
sys.exit(main())
"""


def light(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", LIGHT, *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
def test_help_imports_nothing_heavy(command):
    result = light(*command, "--help")
    assert result.returncode == 0 and result.stdout.startswith(f"usage: {' '.join(['audiox', *command])} ")
    if not command:
        assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND (see audiox --help)"),
        ("generate --prompt a", "required: -o/--output (see audiox generate --help)"),
        ("generate --prompt a -o x.xyz", "output x.xyz: unknown extension '.xyz'"),
        ("generate --prompt a --steps 1e9 -o x.wav", "--steps: must be a whole number from 1 to 10000, got '1e9'"),
        ("edit --audio a.wav -o x.wav", "nothing to do: give --inpaint, --extend or --strength"),
        ("features v.mp4 -o x.pt", "x.pt: must be a .safetensors file or an existing folder"),
        ("convert a", "required: target (see audiox convert --help)"),
        ("demo --output a/b/c", "a/b: no such folder"),
        ("bench --sweep --eta 1", "--eta does not go with --sweep"),
    ],
)
def test_wrong_arguments_are_found_before_anything_heavy_is_imported(words, message):
    result = light(*words.split())
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("audiox: error: ") and result.stderr.count("\n") == 1 and message in result.stderr


@pytest.mark.parametrize("start", [["-m", "audiox_diffusers"], ["-m", "audiox_diffusers.cli"], None])
def test_ways_to_start(start):
    command = [Path(sys.executable).parent / "audiox"] if start is None else [sys.executable, *start]
    result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert result.stdout == f"audiox-diffusers {audiox_diffusers.__version__}\n" and result.returncode == 0
    result = subprocess.run([*command, "convert", "nix", "nix/nix"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "audiox: error: nix: no such folder\n"


# The model of the package


def test_sounds_of_the_model_of_the_package(media, out, monkeypatch):
    monkeypatch.chdir(media)
    folder = Path(audiox_diffusers.__file__).parent / "embedded" / "audiox-tiny"
    generate_sound = ["generate", "--prompt", "rain", "--steps", "2", "--length", "0.5", "-o"]
    for name, options in (("a", []), ("b", ["--model", "audiox-tiny"]), ("c", ["--model", str(folder)])):
        assert main([*generate_sound, str(out / f"{name}.wav"), *options]) == 0
    sound, rate = load_audio(out / "a.wav")
    assert (rate, sound.shape) == (16000, (1, 8000))
    assert (out / "a.wav").read_bytes() == (out / "b.wav").read_bytes() == (out / "c.wav").read_bytes()

    edit_sound = [
        "edit",
        "--audio",
        str(out / "a.wav"),
        "--extend",
        "0.5",
        "--steps",
        "2",
        "-o",
        str(out / "longer.wav"),
    ]
    assert main(edit_sound) == 0
    longer, _ = load_audio(out / "longer.wav")
    assert longer.shape == (1, 16000) and (longer[:, :7600] == sound[:, :7600]).all()


def test_features_of_the_model_of_the_package(media, out):
    assert main(["features", str(media / "video.mp4"), "-o", str(out / "video.safetensors")]) == 0
    features = str(out / "video.safetensors")
    assert main(["generate", "--video", features, "--steps", "1", "--length", "0.5", "-o", str(out / "x.wav")]) == 0


def test_a_folder_named_as_the_model_of_the_package_goes_first(model, out, monkeypatch):
    monkeypatch.chdir(out)
    shutil.copytree(model, "audiox-tiny")
    assert main(["generate", "--prompt", "a", "--steps", "1", "--normalize", "-o", "x.wav"]) == 0
    assert load_audio("x.wav")[1] == RATE
    (out / "audiox-tiny" / "model_index.json").unlink()
    assert main(["generate", "--prompt", "a", "--steps", "1", "-o", "y.wav"]) == 2
    assert names(out / "audiox-tiny") and not Path("y.wav").exists()


# audiox generate


@pytest.mark.parametrize("output", ["sound.wav", "sound.flac", "sound.mp3", "sound.ogg", "sound.m4a"])
def test_text(make_sound, out, capsys, output):
    make_sound("--prompt", "a dog", output=output)
    line = capsys.readouterr().out
    assert line.startswith(f"wrote {out / output}: 0.00 s of stereo sound at 44100 Hz, peak ")
    assert ", scaled to 1.00; loaded in " in line and ", generated in " in line and line.endswith(" s\n")
    assert names(out) == [output]
    waveform, _ = load_audio(out / output)
    assert waveform.shape[0] == 2 and waveform.any()


def test_every_condition_changes_the_sound(make_sound, media):
    conditions = {
        "text": ["--prompt", "a dog"],
        "negative": ["--prompt", "a dog", "--negative-prompt", "music"],
        "guidance": ["--prompt", "a dog", "--guidance", 2],
        "interval": ["--prompt", "a dog", "--guidance-interval", "0-0.9"],
        "rescale": ["--prompt", "a dog", "--guidance-rescale", 0.7],
        "steps": ["--prompt", "a dog", "--steps", 4],
        "seed": ["--prompt", "a dog", "--seed", 1],
        "video": ["--video", media / "video.mp4"],
        "image": ["--image", media / "image.png"],
        "audio": ["--audio", media / "audio.wav"],
        "text and video": ["--prompt", "a dog", "--video", media / "video.mp4"],
        "weights": ["--prompt", "a dog", "--video", media / "video.mp4", "--guidance", "text=3,video=7"],
        "all": ["--prompt", "a dog", "--video", media / "video.mp4", "--audio", media / "audio.wav"],
    }
    sounds = {name: make_sound(*args) for name, args in conditions.items()}
    assert len(set(sounds.values())) == len(sounds)
    assert sounds["text"] == make_sound(*conditions["text"])


def test_steps_and_guidance_are_the_models_own(model, make_sound, tmp_path, out, capsys):
    expected = make_sound("--prompt", "a dog", "--steps", 2, "--guidance", 1)
    folder = tmp_path / "turbo"
    shutil.copytree(model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"default_num_inference_steps": 2, "default_guidance_scale": 1.0}
    (folder / "model_index.json").write_text(json.dumps(index))
    command = ["generate", "--model", folder, "--prompt", "a dog", "--normalize", "--no-metadata"]
    command += ["-o", out / "own.wav"]
    assert main([str(word) for word in command]) == 0
    assert (out / "own.wav").read_bytes() == expected


def test_audio_padding(make_sound, tmp_path):
    save_audio(tmp_path / "short.wav", torch.full((40,), 0.5), RATE)
    right = make_sound("--audio", tmp_path / "short.wav")
    assert make_sound("--audio", tmp_path / "short.wav", "--audio-padding", "left") != right


def test_length(make_sound, out):
    make_sound("--prompt", "a dog", "--length", 100 / RATE)
    waveform, rate = load_audio(out / "sound.wav")
    assert rate == RATE and waveform.shape == (2, 100)


@pytest.mark.parametrize("output", ["video.mp4", "video.mov", "video.mkv"])
def test_video_with_new_sound_keeps_its_picture(make_sound, media, out, capsys, output):
    make_sound("--video", media / "video.mp4", "--prompt", "a dog", output=output)
    assert picture_packets(out / output) == picture_packets(media / "video.mp4")
    waveform, _ = load_audio(out / output)
    assert waveform.shape[0] == 2
    assert "; the video continues without sound until 0.60 s; loaded in" in capsys.readouterr().out
    assert names(out) == [output]


@pytest.mark.parametrize(
    ("muxer", "codec", "options"),
    [
        ("webm", "libvpx", {"live": "1"}),
        ("matroska", "libx264", {"live": "1"}),
        ("mjpeg", "mjpeg", {}),
        ("mpegts", "mpeg2video", {}),
    ],
)
def test_a_video_without_a_declared_duration(make_sound, tmp_path, out, muxer, codec, options):
    """As browsers, live streams and cameras write them."""
    path = tmp_path / f"recording.{muxer}"
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for shade in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 25 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    make_sound("--video", path, "--prompt", "rain", output="film.mkv")
    assert load_audio(out / "film.mkv")[0].any()
    assert len(load_video(out / "film.mkv", fps=25)) in range(9, 12)


def test_several_sounds(make_sound, out, capsys):
    alone = [make_sound("--prompt", "a dog", "--seed", seed) for seed in (5, 6)]
    (out / "sound.wav").unlink()
    capsys.readouterr()
    make_sound("--prompt", "a dog", "--seed", 5, "--num", 2)
    lines = capsys.readouterr().out.splitlines()
    assert names(out) == ["sound-1.wav", "sound-2.wav"]
    assert [line.split(":")[0] for line in lines[:2]] == [f"wrote {out / f'sound-{i}.wav'}" for i in (1, 2)]
    assert lines[2].startswith("wrote 2 sounds; loaded in ")
    assert alone[0] != alone[1]
    assert [(out / f"sound-{i}.wav").read_bytes() for i in (1, 2)] == alone


def test_several_sounds_from_an_audio_prompt(make_sound, media, out):
    make_sound("--audio", media / "audio.wav", "--num", 2)
    assert (out / "sound-1.wav").read_bytes() != (out / "sound-2.wav").read_bytes()


def test_levels_are_left_alone_unless_asked(model, out, capsys):
    command = ["generate", "--model", str(model), "--steps", "3", "--prompt", "a dog", "-o", str(out / "a.wav")]
    assert main(command) == 0
    loud = capsys.readouterr()
    assert float(loud.out.split("peak ")[1].split(";")[0]) > 1
    (warning,) = [line for line in loud.err.splitlines() if line.startswith("audiox: warning: ")]
    assert "were clipped" in warning

    assert main([*command, "--normalize"]) == 0
    assert "clipped" not in capsys.readouterr().err
    waveform, _ = load_audio(out / "a.wav")
    assert waveform.abs().max() == pytest.approx(1, abs=1e-4)


def test_precision(make_sound):
    assert make_sound("--prompt", "a dog", "--dtype", "bfloat16") != make_sound("--prompt", "a dog")


def test_terminal_shows_steps_and_warnings_only(make_sound, capsys):
    make_sound("--prompt", "a dog that barks\nat night")
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    (warning,) = [line for line in lines if "it/s" not in line and "s/it" not in line and "%" not in line]
    assert warning.startswith("audiox: warning: `prompt`")
    assert any("3/3" in line for line in lines)
    assert not any("Loading" in line for line in lines)


def test_leaves_the_settings_of_libraries(make_sound):
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    def settings():
        libraries = (diffusers_logging, transformers_logging)
        return [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]

    before = settings()
    make_sound("--prompt", "a dog")
    assert settings() == before


# audiox generate: what is wrong with the input


def wrong(args: list[object], capsys) -> str:
    """The one line that `audiox` says when it is given these."""
    capsys.readouterr()
    assert main([str(word) for word in args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("audiox: error: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "give at least one of prompt, video, image and audio"),
        ("--prompt a -o {out}/x.mp4", "needs a video"),
        ("--prompt a -o {out}/x.xyz", "unknown extension '.xyz'"),
        ("--prompt a -o {out}", "unknown extension ''"),
        ("--prompt a -o {out}/nix/x.wav", "out/nix: no such folder"),
        ("--prompt a -o {media}/audio.wav/x.wav", "audio.wav: not a folder"),
        ("--video {media}/nix.mp4", "nix.mp4: no such file"),
        ("--video {media}/text.mp4", "text.mp4: not a sound or video file"),
        ("--video {media}/audio.wav -o {out}/x.mp4", "audio.wav: has no video stream"),
        ("--video {media}/nix.safetensors", "nix.safetensors: no such file"),
        ("--video {media}/text.safetensors", "text.safetensors: not a file of video features"),
        ("--video {media}/other.safetensors", "other.safetensors: holds no video_embeds"),
        (
            "--video {media}/other.safetensors -o {out}/x.mp4",
            "other.safetensors contains features of a video and no picture",
        ),
        ("--image {media}/nix.png", "nix.png: no such file"),
        ("--image {media}/video.mp4", "video.mp4: not a picture"),
        ("--audio {media}/nix.wav", "nix.wav: no such file"),
        ("--audio {media}/image.png", "image.png: not a sound or video file"),
        ("--video {media}/video.mp4 --image {media}/image.png", "not both"),
        ("--prompt a --steps 0", "--steps: must be a whole number from 1 to 10000, got '0'"),
        ("--prompt a --guidance nan", "--guidance: must be a number from -1000 to 1000, got 'nan'"),
        ("--prompt a --guidance text=3,smell=2", "--guidance: must be a number or weights for text, video, audio"),
        ("--prompt a --guidance text=x", "--guidance: must be a number from -1000 to 1000, got 'x'"),
        (
            "--prompt a --guidance video=3",
            "--guidance has a weight for video, but the sound has no prompt of that kind",
        ),
        ("--prompt a --guidance-interval 0.5", "--guidance-interval: must be LOW-HIGH"),
        ("--prompt a --guidance-interval 0.5-2", "--guidance-interval: must be LOW-HIGH with 0 <= LOW < HIGH <= 1"),
        ("--prompt a --guidance-interval 0.8-0.2", "--guidance-interval: must be LOW-HIGH with 0 <= LOW < HIGH <= 1"),
        ("--prompt a --guidance-rescale 1.1", "--guidance-rescale: must be a number from 0 to 1, got '1.1'"),
        ("--prompt a --length 0", "--length: must be a number above 0 and at most 86400, got '0'"),
        ("--prompt a --length 1e9", "--length: must be"),
        ("--prompt a --num 0", "--num: must be a whole number from 1 to 10000, got '0'"),
        ("--prompt a --seed -1", "--seed: must be a whole number from 0 to 2**64 - 1"),
        ("--prompt a --seed 18446744073709551615 --num 2", "the last seed"),
        ("--prompt a --device nix", "--device nix: not available"),
        ("--prompt a --window-overlap 0", "--window-overlap: must be a number above 0"),
        ("--prompt a --window-batch 0", "--window-batch: must be a whole number from 1 to 1024"),
    ],
)
def test_wrong_input_is_found_before_the_model_is_loaded(monkeypatch, model, media, out, capsys, args, message):
    monkeypatch.setattr(generate, "load_pipeline", None)
    words = args.format(out=out, media=media).split()
    assert message in wrong(["generate", "--model", model, "-o", out / "x.wav", *words], capsys)
    assert names(out) == []


def test_length_beyond_the_window(make_sound, out, capsys):
    """The pieces that are written, scaled by the peak of all, are those of the pipeline."""
    make_sound("--prompt", "a dog", "--length", 0.1, output="long.wav")
    assert ": 0.10 s of stereo sound" in capsys.readouterr().out
    waveform, _ = load_audio(out / "long.wav")
    assert waveform.shape == (2, 4410) and waveform.abs().max() == pytest.approx(1, abs=1e-4)
    make_sound("--prompt", "a dog", "--length", 0.1, "--window-batch", 1, output="one.wav")
    assert (load_audio(out / "one.wav")[0] - waveform).abs().max() < 1e-3
    make_sound("--prompt", "a dog", "--length", 0.1, "--window-overlap", 0.002, output="overlap.wav")
    assert (load_audio(out / "overlap.wav")[0] - waveform).abs().max() > 0.1


def test_what_fails_while_writing_leaves_nothing(monkeypatch, model, out):
    def fail(self, latents, num_samples):
        yield np.zeros((1, 2, 5), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioXPipeline, "stream_latents", fail)
    args = ["generate", "--model", model, "--prompt", "a", "--steps", 1, "--length", 0.01, "-o", out / "x.wav"]
    assert main([str(word) for word in args]) == 130
    assert names(out) == []


def test_a_folder_without_a_model(out, capsys):
    (out / "folder").mkdir()
    (out / "notes.txt").write_text("notes")
    for name, expected in (("folder", "Expected model_index.json, or a released checkpoint"), ("notes.txt", ".ckpt")):
        line = wrong(["generate", "--model", out / name, "--prompt", "a", "-o", out / "x.wav"], capsys)
        assert expected in line
    assert names(out) == ["notes.txt"]


@pytest.mark.parametrize("name", ["nix", "someone/nix", "./not/a/repo"])
def test_no_such_model(out, capsys, name):
    line = wrong(["generate", "--model", name, "--prompt", "a", "-o", out / "x.wav"], capsys)
    assert f"--model {name}: no such folder" in line


def more_layers(folder: Path) -> None:
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 3}))


def truncate_text_encoder(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def empty_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}")


class Code:
    def __reduce__(self):
        return print, ("code was run",)


def pickled_text_encoder(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"shared.weight": Code()}, folder / "text_encoder" / "pytorch_model.bin")


def deep_config(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("[" * 200000)


@pytest.mark.parametrize(
    "damage", [more_layers, truncate_text_encoder, empty_index, pickled_text_encoder, deep_config]
)
def test_a_damaged_model(model, tmp_path, out, capsys, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    damage(folder)
    message = wrong(["generate", "--model", folder, "--prompt", "a", "-o", out / "x.wav"], capsys)
    assert str(folder) in message
    assert names(out) == []


# Pipes


def run_process(*words: object, given: bytes = b"") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "audiox_diffusers", *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True)


def test_standard_input_and_output(model, media, make_sound, out):
    expected = make_sound("--audio", media / "audio.wav", "--prompt", "a dog")
    options = [
        "--model",
        model,
        "--steps",
        3,
        "--normalize",
        "--no-metadata",
        "--prompt",
        "a dog",
        "--audio",
        "-",
        "-o",
        "-",
    ]
    result = run_process("generate", *options, given=(media / "audio.wav").read_bytes())
    assert result.returncode == 0 and result.stdout == expected
    assert b"wrote " in result.stderr and names(out) == ["sound.wav"]


def test_a_pipe_as_input(model, media, make_sound, out):
    expected = make_sound("--video", media / "video.mp4")
    os.mkfifo(out / "pipe")
    writer = threading.Thread(target=lambda: (out / "pipe").write_bytes((media / "video.mp4").read_bytes()))
    writer.start()
    assert make_sound("--video", out / "pipe", output="piped.wav") == expected
    writer.join()


def test_a_batch_from_standard_input(model, media, make_sound, out):
    """Its paths are relative to the current directory."""
    expected = make_sound("--audio", media / "audio.wav", "--seed", 0)
    line = json.dumps({"audio": os.path.relpath(media / "audio.wav")}).encode()
    result = run_process(
        "generate",
        "--model",
        model,
        "--steps",
        3,
        "--normalize",
        "--no-metadata",
        "--batch",
        "-",
        "-o",
        out / "b",
        given=line,
    )
    assert result.returncode == 0, result.stderr
    assert (out / "b" / "00001.wav").read_bytes() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate --prompt a --num 2 -o -", "--num 2 needs files as --output, got -"),
        ("generate --video - --audio - -o a.wav", "only one file can be read from standard input"),
        ("generate --batch lines.jsonl -o -", "--batch needs a folder as --output, got -"),
    ],
)
def test_pipes_that_cannot_be(words, message, capsys):
    assert message in wrong(words.split(), capsys)


# Hints and escapes


def test_words_that_the_model_of_the_package_does_not_know(out, capsys):
    command = ["generate", "--steps", "1", "--length", "0.1", "-o", str(out / "x.wav"), "--prompt"]
    assert main([*command, "Three bell strikes, then rain"]) == 0
    assert "note" not in capsys.readouterr().err
    assert main([*command, "A harpsichord, a saxophone, a theremin and a didgeridoo"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audiox: note: ")]
    assert "does not know 'harpsichord', 'saxophone', 'theremin' and 1 more" in note
    assert "it knows bell, drum" in note and "--model audiox" in note


def test_no_note_with_another_model(make_sound, capsys):
    make_sound("--prompt", "a harpsichord")
    assert "note" not in capsys.readouterr().err


EVIL = "\x1b]0;title\x07\x9b2J\u202e\r\nx"


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "a", "--steps", EVIL, "-o", "x.wav"],
        ["generate", "--prompt", "a", "-o", f"x.{EVIL}"],
        ["generate", "--prompt", "a", "-o", f"{EVIL}/x.wav"],
        ["generate", "--audio", EVIL, "-o", "x.wav"],
        ["generate", "--prompt", "a", "--model", f"./{EVIL}", "-o", "x.wav"],
        ["generate", "--prompt", "a", "--device", EVIL, "-o", "x.wav"],
        ["generate", "--batch", EVIL, "-o", "folder"],
        ["features", EVIL, "-o", "x.safetensors"],
        ["convert", EVIL, "target"],
        [EVIL],
    ],
)
def test_control_characters_of_arguments_are_escaped(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = wrong(words, capsys)
    assert line.rstrip("\n").isprintable() and r"\x1b" in line


def test_control_characters_of_files_are_escaped(model, lines, out, capsys):
    folder = out / EVIL
    path = lines({"prompt": f"a {EVIL}", "output": f"{EVIL}.wav"}, {"prompt": "a", EVIL: 1}, {"audio": f"{EVIL}.wav"})
    assert run_batch(model, path, folder) == 2
    said = capsys.readouterr()
    for line in [*said.out.split("\n"), *said.err.split("\n")]:
        if not line.startswith("\r"):  # a progress bar
            assert line.isprintable(), line
    assert said.out.splitlines()[-1] == "wrote 1, skipped 0, failed 2"


def test_long_lines_are_cut(capsys):
    line = wrong(["generate", "--prompt", "a", "-o", f"{'x' * 100000}/x.wav"], capsys)
    assert len(line) < 3000 and "characters)" in line


def test_names_that_the_terminal_cannot_show(model, tmp_path):
    """A file name that is not UTF-8, and a terminal that is ASCII."""
    for name in ("caf\udce9.wav", "鳥.wav"):
        command = [
            sys.executable,
            "-m",
            "audiox_diffusers",
            "generate",
            "--model",
            model,
            "--prompt",
            "a",
            "--steps",
            "1",
        ]
        result = subprocess.run(
            [*command, "-o", os.fsencode(tmp_path / name)],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
        )
        assert result.returncode == 0, result.stderr
        assert b"wrote " in result.stdout and (tmp_path / name).exists()


def test_interrupted(monkeypatch, model, out, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "make", interrupt)
    assert main(["generate", "--model", str(model), "--prompt", "a", "-o", str(out / "x.wav")]) == 130
    assert capsys.readouterr().err == "audiox: interrupted\n"
    assert names(out) == []


def test_an_unexpected_error_is_one_line_unless_a_traceback_is_asked_for(monkeypatch, model, out, capsys):
    def fail(*args):
        raise RuntimeError("a bug\nwith details")

    monkeypatch.setattr(generate, "make", fail)
    command = ["generate", "--model", str(model), "--prompt", "a", "-o", str(out / "x.wav")]
    line = wrong(command, capsys)
    assert line == "audiox: error: unexpected RuntimeError: a bug (set AUDIOX_TRACEBACK=1 for the traceback)\n"
    monkeypatch.setenv("AUDIOX_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        main(command)


# audiox edit


@pytest.fixture
def edit_sound(model, media, out):
    """Run `audiox edit` on a tone of 0.02 s, much longer than the small model's window."""
    tone = 0.5 * np.sin(np.arange(882) * 0.1, dtype=np.float32)
    save_audio(media / "long.wav", np.stack((tone, tone)), RATE)

    def run(*args: object, output: str = "edited.wav") -> torch.Tensor | None:
        command = ["edit", "--model", model, "--audio", media / "long.wav", "--steps", 3, "--crossfade", 0]
        command += [*args, "-o", out / output]
        assert main([str(word) for word in command]) == 0
        return load_audio(out / output)[0] if (out / output).exists() else None

    return run


def test_edit_inpaints(edit_sound, media, capsys):
    original, _ = load_audio(media / "long.wav")
    sound = edit_sound("--prompt", "a", "--inpaint", "0.005-0.008", "--inpaint", "0.01-0.012")
    changed = (sound != original).any(dim=0).nonzero().flatten()
    assert sound.shape == original.shape and changed.min() >= 220 and changed.max() < 529
    assert not ((changed >= 353) & (changed < 441)).any()
    assert ": 0.02 s of stereo sound at 44100 Hz" in capsys.readouterr().out


def test_edit_extends(edit_sound, media):
    original, _ = load_audio(media / "long.wav")
    after, before = edit_sound("--extend", 0.01), edit_sound("--extend", -0.01)
    assert after.shape == before.shape == (2, 1323)
    assert torch.equal(after[:, :882], original) and torch.equal(before[:, -882:], original)


def test_edit_varies_with_the_seed(edit_sound, out):
    edit_sound("--strength", 0.9, "--num", 2, "--seed", 4)
    first = (out / "edited-1.wav").read_bytes()
    edit_sound("--strength", 0.9, "--seed", 4)
    assert (out / "edited.wav").read_bytes() == first != (out / "edited-2.wav").read_bytes()


def test_edit_of_the_sound_of_a_video(edit_sound, media, out):
    edit_sound("--audio", media / "video.mp4", "--video", media / "video.mp4", "--strength", 0.9, output="edited.mp4")
    assert picture_packets(out / "edited.mp4") == picture_packets(media / "video.mp4")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "nothing to do: give --inpaint, --extend or --strength"),
        ("--extend 1 --strength 0.5", "--extend does not go with"),
        ("--inpaint 3", "--inpaint: must be START-END"),
        ("--inpaint 3-2", "--inpaint: must be START-END"),
        ("--strength 0.5 -o {out}/x.mp4", "needs a video"),
        ("--strength 0.5 --audio {media}/nix.wav", "nix.wav: no such file"),
    ],
)
def test_wrong_edits_are_found_before_the_model_is_loaded(monkeypatch, model, media, out, capsys, args, message):
    monkeypatch.setattr(generate, "load_pipeline", None)
    start = ["edit", "--model", model, "--audio", media / "audio.wav", "-o", out / "x.wav"]
    assert message in wrong([*start, *args.format(out=out, media=media).split()], capsys)
    assert names(out) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--crossfade 0 --inpaint 0.001-2", "the sound is 0.004354 s long"),
        ("--crossfade 0 --strength 2", "--strength: must be a number above 0 and at most 1"),
        ("--extend nan", "--extend: must be a number"),
        ("--strength 1", "`crossfade_ms` must be in 0..1.088 ms, the overlap of windows, got 20"),
    ],
)
def test_wrong_edits(model, media, out, capsys, args, message):
    save_audio(media / "stereo.wav", torch.full((2, WINDOW), 0.1), RATE)
    start = ["edit", "--model", model, "--audio", media / "stereo.wav", "-o", out / "x.wav"]
    assert message in wrong([*start, *args.split()], capsys)
    assert names(out) == []


# audiox generate --batch


@pytest.fixture
def lines(media):
    """Write a file of lines beside the media files."""
    paths = []

    def write(*values: object) -> Path:
        path = media / "lines.jsonl"
        path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
        paths.append(path)
        return path

    yield write
    for path in paths:
        path.unlink(missing_ok=True)


def run_batch(model: Path, path: Path, folder: Path, *args: object) -> int:
    command = [
        "generate",
        "--model",
        model,
        "--steps",
        3,
        "--normalize",
        "--no-metadata",
        "--batch",
        path,
        "-o",
        folder,
        *args,
    ]
    return main([str(word) for word in command])


def test_batch(model, media, lines, make_sound, out, capsys):
    path = lines(
        {"prompt": "a dog"},
        "",
        {"video": "video.mp4", "output": "films/film.mp4", "negative_prompt": "music"},
        {"image": str(media / "image.png"), "length": 0.002, "seed": 3},
        {"prompt": "a dog", "audio": "audio.wav", "output": "other.flac"},
    )
    folder = out / "batch"
    assert run_batch(model, path, folder, "--seed", 7) == 0
    assert names(folder) == ["00001.wav", "00004.wav", "films/film.mp4", "other.flac"]
    assert capsys.readouterr().out.splitlines()[-1] == "wrote 4, skipped 0, failed 0"

    assert (folder / "00001.wav").read_bytes() == make_sound("--prompt", "a dog", "--seed", 7)
    alone = make_sound("--image", media / "image.png", "--seed", 3, "--length", 0.002)
    assert (folder / "00004.wav").read_bytes() == alone
    alone = make_sound("--prompt", "a dog", "--audio", media / "audio.wav", "--seed", 11, output="a.flac")
    assert (folder / "other.flac").read_bytes() == alone
    assert picture_packets(folder / "films/film.mp4") == picture_packets(media / "video.mp4")


def test_batch_options_are_defaults_of_its_lines(model, lines, make_sound, out):
    path = lines({"prompt": "a dog"}, {"prompt": "a dog", "negative_prompt": "voices", "length": 0.003, "seed": 0})
    assert run_batch(model, path, out, "--negative-prompt", "music", "--length", 0.002, "--guidance", 3) == 0
    shared = ["--prompt", "a dog", "--guidance", 3]
    expected = make_sound(*shared, "--negative-prompt", "music", "--length", 0.002)
    assert (out / "00001.wav").read_bytes() == expected
    expected = make_sound(*shared, "--negative-prompt", "voices", "--length", 0.003)
    assert (out / "00002.wav").read_bytes() == expected


def test_batch_resumes(monkeypatch, model, lines, out, capsys):
    path = lines({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    assert run_batch(model, path, out) == 0
    first = {name: (out / name).read_bytes() for name in names(out)}
    (out / "00002.wav").unlink()
    capsys.readouterr()

    assert run_batch(model, path, out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote 1, skipped 2, failed 0"
    assert {name: (out / name).read_bytes() for name in names(out)} == first

    monkeypatch.setattr(batch, "load_pipeline", None)
    assert run_batch(model, path, out) == 0
    assert capsys.readouterr().out == "wrote 0, skipped 3, failed 0\n"


def test_batch_goes_on_after_a_line_that_fails(model, lines, out, capsys):
    path = lines({"prompt": "a"}, {"video": "nix.mp4"}, {"audio": "text.mp4"}, {"prompt": "b"})
    assert run_batch(model, path, out) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("audiox: error")]
    assert len(errors) == 2
    assert "lines.jsonl, line 2: " in errors[0] and "nix.mp4: no such file" in errors[0]
    assert "lines.jsonl, line 3: " in errors[1] and "text.mp4" in errors[1]
    assert said.out.splitlines()[-1] == "wrote 2, skipped 0, failed 2"
    assert names(out) == ["00001.wav", "00004.wav"]


def test_interrupted_batch_keeps_what_is_complete(monkeypatch, model, lines, out, capsys):
    finish = batch.finish

    def interrupt(pipe, request, *args):
        if request.prompt == "b":
            raise KeyboardInterrupt
        return finish(pipe, request, *args)

    monkeypatch.setattr(batch, "finish", interrupt)
    assert run_batch(model, lines({"prompt": "a"}, {"prompt": "b"}), out) == 130
    assert names(out) == ["00001.wav"]


GOOD = {"prompt": "a"}


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"promt": "a"}, "unknown key 'promt'"),
        ({"prompt": 3}, "prompt is of the wrong type: 3"),
        ({"prompt": "a", "seed": "0"}, 'seed is of the wrong type: "0"'),
        ({"prompt": "a", "seed": True}, "seed is of the wrong type: true"),
        ({"prompt": "a", "seed": -1}, "seed must be in"),
        ({"prompt": "a", "length": 0}, "length must be"),
        ({"prompt": "a", "length": 1e9}, "length must be above 0 and at most 86400 seconds, got 1000000000.0"),
        (f'{{"prompt": "a", "length": {HUGE}}}', "length must be"),
        (f'{{"prompt": "a", "seed": {HUGE}}}', "seed must be in"),
        (f'{{"prompt": "a", "seed": {HUGE * 11}}}', "Exceeds the limit"),
        ('{"prompt": "a", "length": NaN}', "length must be"),
        ("{'prompt': 'a'}", "Expecting property name"),
        ("[" * 200000, "nested too deeply"),
        ("[1]", "must be a JSON object, got list"),
        ({}, "give at least one of"),
        ({"prompt": "\ud800"}, r"prompt is not valid text: '\ud800'"),
        ({"prompt": "a", "negative_prompt": "rain \udfff"}, "negative_prompt is not valid text"),
        ({"prompt": "a", "output": "00001.wav"}, "is already the output of line 1"),
        ({"prompt": "a", "output": "x/../00001.wav"}, "is already the output of line 1"),
        ({"prompt": "a", "output": "../x.wav"}, "leaves the output folder"),
        ({"prompt": "a", "output": "/x.wav"}, "leaves the output folder"),
        ({"prompt": "a", "output": "x.mp4"}, "needs a video"),
        ({"prompt": "a", "output": "x.xyz"}, "unknown extension"),
        ({"prompt": "a", "output": "folder.wav"}, "folder.wav: a folder"),
        ({"prompt": "a", "output": "pipe.wav"}, "pipe.wav: not a regular file"),
        ({"prompt": "a", "output": "loop/x.wav"}, "loop: not a folder"),
        ({"prompt": "a", "output": "file/x.wav"}, "file: not a folder"),
        ({"prompt": "a", "output": "\0.wav"}, "null"),
        ({"video": "\0.mp4"}, "null"),
        ({"video": "video.mp4", "image": "image.png"}, "not both"),
        ({"video": "video.safetensors", "output": "x.mp4"}, "contains features of a video and no picture"),
    ],
)
def test_a_wrong_line_leaves_the_others_alone(monkeypatch, model, lines, out, capsys, line, message):
    """Here the other line is done already, so that no model is needed."""
    monkeypatch.setattr(batch, "load_pipeline", None)
    (out / "00001.wav").touch()
    (out / "file").touch()
    (out / "folder.wav").mkdir()
    (out / "loop").symlink_to("loop")
    os.mkfifo(out / "pipe.wav")
    path = lines(GOOD, line)
    assert run_batch(model, path, out) == 2
    said = capsys.readouterr()
    assert said.err.startswith("audiox: error: ") and said.err.count("\n") == 1
    assert "lines.jsonl, line 2: " in said.err and message in said.err
    assert said.out == "wrote 0, skipped 1, failed 1\n"


def test_batch_from_features(model, encode, media, lines, make_sound, out):
    features_file = encode(media / "video.mp4")
    path = lines({"video": str(features_file)}, {"video": "video.mp4", "seed": 0}, {"video": "other.safetensors"})
    assert run_batch(model, path, out) == 2
    assert names(out) == ["00001.wav", "00002.wav"]
    assert (out / "00001.wav").read_bytes() == (out / "00002.wav").read_bytes()


@pytest.mark.parametrize("option", ["--prompt a", "--video a.mp4", "--image a.png", "--audio a.wav", "--num 1"])
def test_batch_excludes_prompts(model, lines, out, capsys, option):
    args = ["generate", "--model", model, "--batch", lines(GOOD), "-o", out, *option.split()]
    assert f"{option.split()[0]} does not go with --batch" in wrong(args, capsys)


def test_batch_without_lines_or_folder(model, media, lines, out, capsys):
    start = ["generate", "--model", model, "--batch"]
    assert "nix.jsonl" in wrong([*start, media / "nix.jsonl", "-o", out], capsys)
    assert "has no lines" in wrong([*start, lines(""), "-o", out], capsys)
    assert "not UTF-8" in wrong([*start, media / "video.mp4", "-o", out], capsys)
    path = lines(GOOD)
    assert "no such folder" in wrong([*start, path, "-o", out / "a" / "b"], capsys)
    assert "not a folder" in wrong([*start, path, "-o", media / "audio.wav"], capsys)
    assert list(out.iterdir()) == []


# audiox features


@torch.no_grad()
def test_features(model, encode, media, capsys):
    path = encode(media / "video.mp4")
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(f"wrote {path}: 20 video tokens; loaded in ")
    assert ", encoded in " in said.out and said.out.endswith(" s\n") and said.out.count("\n") == 1
    tensors = load_file(path)
    assert list(tensors) == ["video_embeds"] and tensors["video_embeds"].shape == (4, 5, 64)
    pipe = AudioXPipeline.from_pretrained(model)
    assert torch.equal(tensors["video_embeds"], pipe.encode_video(media / "video.mp4")[0])
    assert load_file(encode(media / "video.mp4", "--dtype", "bfloat16"))["video_embeds"].dtype == torch.bfloat16


def test_sound_from_features_is_that_from_the_video(make_sound, encode, media):
    from_video = make_sound("--video", media / "video.mp4", "--prompt", "a dog", "--seed", 3)
    from_features = make_sound("--video", encode(media / "video.mp4"), "--prompt", "a dog", "--seed", 3)
    assert from_features == from_video
    assert from_features != make_sound("--prompt", "a dog", "--seed", 3)


def test_features_with_sync(make_sound, encode, sync_model, media, capsys):
    other = ["--model", sync_model]
    path = encode(media / "video.mp4", *other)
    assert ": 20 video tokens and 24 sync tokens; loaded in " in capsys.readouterr().out
    tensors = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "video_embeds": (4, 5, 64),
        "sync_embeds": (24, 64),
    }
    sound = make_sound("--video", path, *other)
    assert sound == make_sound("--video", media / "video.mp4", *other)

    save_features(path, tensors["video_embeds"], torch.zeros(24, 64))
    assert make_sound("--video", path, *other) != sound


def test_features_of_a_video_that_is_black_in_the_middle(make_sound, encode, sync_model, tmp_path):
    frames = np.zeros((6, 32, 128, 3), np.uint8)
    frames[..., :16, :] = 255
    save_video(tmp_path / "edge.mp4", frames, fps=10)
    path = encode(tmp_path / "edge.mp4", "--model", sync_model)
    assert load_features(path, "sync_embeds").any() and load_features(path, "video_embeds").any()
    other = ["--model", sync_model]
    assert make_sound("--video", path, *other) == make_sound("--video", tmp_path / "edge.mp4", *other)


def test_features_of_another_model(model, encode, sync_model, media, out, capsys):
    path = encode(media / "video.mp4")
    generate_sound = ["generate", "--prompt", "a", "--steps", 1, "-o", out / "x.wav", "--model"]
    said = wrong([*generate_sound, sync_model, "--video", path], capsys)
    assert "video.safetensors: holds no sync_embeds" in said
    save_features(path, torch.zeros(3, 5, 64), None)
    assert "video_embeds has the shape [3, 5, 64], and the model expects [4, 5, 64]" in wrong(
        [*generate_sound, model, "--video", path], capsys
    )
    assert names(out) == []


def test_features_load_what_they_need_only(encode, model, media, tmp_path):
    shutil.copytree(model, tmp_path / "light")
    for name in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(tmp_path / "light" / name)
    expected = encode(media / "video.mp4").read_bytes()
    assert encode(media / "video.mp4", "--model", tmp_path / "light").read_bytes() == expected


def test_features_replace_a_file(encode, media):
    expected = encode(media / "video.mp4").read_bytes()
    path = encode(media / "video.mp4")
    path.write_bytes(b"old")
    assert encode(media / "video.mp4").read_bytes() == expected
    assert names(path.parent) == [path.name]


def test_features_of_several_videos(monkeypatch, model, encode, media, tmp_path, capsys):
    expected = encode(media / "video.mp4").read_bytes()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(media / "video.mp4", tmp_path / name)
    save_video(tmp_path / "black.mp4", np.zeros((6, 32, 48, 3), np.uint8), fps=10)
    folder = tmp_path / "features"
    videos = [tmp_path / name for name in ("a.mp4", "black.mp4", "b.mp4")]
    command = [str(word) for word in ["features", *videos, "--model", model, "-o", folder]]
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        f"wrote {folder / 'a.safetensors'}: 20 video tokens",
        f"wrote {folder / 'b.safetensors'}: 20 video tokens",
        "wrote 2, skipped 0, failed 1",
    ]
    assert lines[-1].startswith("wrote 2, skipped 0, failed 1; 40 tokens; loaded in ")
    assert said.err.splitlines()[-1].startswith(
        f"audiox: error: {tmp_path / 'black.mp4'}: the video is black throughout"
    )
    assert names(folder) == ["a.safetensors", "b.safetensors"]
    assert all((folder / name).read_bytes() == expected for name in names(folder))

    (folder / "a.safetensors").unlink()
    (folder / "b.safetensors").write_bytes(b"kept")
    del command[2]
    assert main(command) == 0
    assert "wrote 1, skipped 1, failed 0; 20 tokens; loaded in " in capsys.readouterr().out
    assert (folder / "a.safetensors").read_bytes() == expected
    assert (folder / "b.safetensors").read_bytes() == b"kept"

    monkeypatch.setattr(features, "load_pipeline", None)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said == "wrote 0, skipped 2, failed 0; 0 tokens; loaded in 0.0 s, encoded in 0.0 s\n"


def test_features_of_one_video_in_a_folder(model, encode, media, out):
    expected = encode(media / "video.mp4").read_bytes()
    encode(media / "video.mp4", "-o", out)
    assert names(out) == ["video.safetensors"] and (out / "video.safetensors").read_bytes() == expected


def test_features_of_a_black_video(model, out, tmp_path, capsys):
    save_video(tmp_path / "black.mp4", np.zeros((6, 32, 48, 3), np.uint8), fps=10)
    command = ["features", tmp_path / "black.mp4", "--model", model, "-o", out / "x.safetensors"]
    assert main([str(word) for word in command]) == 2
    said = capsys.readouterr()
    line = said.err.splitlines()[-1]
    assert said.out == "" and line.startswith(
        f"audiox: error: {tmp_path / 'black.mp4'}: the video is black throughout"
    )
    assert names(out) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{media}/nix.mp4", "nix.mp4: no such file"),
        ("{media}/text.mp4", "text.mp4: not a sound or video file"),
        ("{media}/audio.wav", "audio.wav: has no video stream"),
        ("{media}/video.mp4 -o {out}/x.pt", "x.pt: must be a .safetensors file"),
        ("{media}/video.mp4 -o {out}/nix/x.safetensors", "out/nix: no such folder"),
        ("{media}/video.mp4 --device nix", "--device nix: not available"),
        ("{media}/video.mp4 --model {media}", "model_index.json"),
        ("{media}/video.mp4 {media}/x.mp4", "x.safetensors: several videos need a folder"),
        ("{media}/video.mp4 {out}/video.mkv -o {out}", "media/video.mp4 and {out}/video.mkv"),
        ("{media}/video.mp4 {media}/text.mp4 -o {out}/nix/new", "out/nix: no such folder"),
        ("{media}/video.mp4 {media}/text.mp4 -o {media}/audio.wav", "audio.wav: not a folder"),
        ("{media}/video.mp4 {media}/text.mp4 -o {out} --model {media}", "model_index.json"),
        ("{media}/video.mp4 {media}/text.mp4 -o {out} --device nix", "--device nix: not available"),
    ],
)
def test_wrong_features_are_found_before_the_model_is_loaded(monkeypatch, model, media, out, capsys, args, message):
    monkeypatch.setattr(features, "load_pipeline", None)
    words = args.format(out=out, media=media).split()
    said = wrong(["features", "--model", model, "-o", out / "x.safetensors", *words], capsys)
    assert message.format(out=out) in said.replace(str(media), "media")
    assert list(out.iterdir()) == []


# audiox convert


def test_converted_folder(model, pipe):
    card = ModelCard.load(model / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "text-to-audio"
    assert {"audiox", "diffusers", "text-to-audio", "video-to-audio"} <= set(card.data.tags)
    assert card.data.base_model is None  # it was a folder
    assert "released checkpoint `audiox`" in card.text and str(model.parent) not in card.text
    assert "https://arxiv.org/abs/2503.10522" in card.text
    assert (
        f"| transformer | `AudioXTransformer2DModel` | {pipe.transformer.num_parameters():,} | float32 |" in card.text
    )

    loaded = AudioXPipeline.from_pretrained(model)
    assert loaded.tokenizer.model_max_length == pipe.conditioner.config.num_text_tokens
    for name in ("transformer", "conditioner", "vae", "text_encoder", "image_encoder"):
        weights = getattr(loaded, name).state_dict()
        for key, tensor in getattr(pipe, name).state_dict().items():
            assert torch.equal(weights[key], tensor), (name, key)


def test_code_of_the_model_card_runs(model, out, monkeypatch):
    text = ModelCard.load(model / "README.md").text
    (out / model.name).symlink_to(model)
    monkeypatch.chdir(out)
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert (out / "waves.wav").exists()
    command = text.split("```bash\n")[1].split("```")[0]
    assert f"audiox generate --model {model.name} " in command


def test_convert_says_what_it_wrote(source, out, capsys):
    (out / "empty").mkdir()
    assert main(["convert", source[0], str(out / "empty"), *source[1:], "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(f"wrote {out / 'empty'}: 1.1 million parameters, ") and said.out.endswith(" MB\n")
    assert [path.name for path in out.iterdir()] == ["empty"]
    assert "| float32 |" not in (out / "empty/README.md").read_text().split("| transformer |")[1].split("\n")[0]
    loaded = AudioXPipeline.from_pretrained(out / "empty", dtype=torch.bfloat16)
    assert loaded.text_encoder.dtype == torch.bfloat16


def test_convert_with_files_of_their_own(sync_model, sync_release, source, pipe, out, capsys):
    loaded = AudioXPipeline.from_pretrained(sync_model)
    assert loaded.sync_encoder.config.hidden_size == 64
    for key, tensor in pipe.vae.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[key], tensor), key

    vae, sync = ("--vae", sync_release / "oobleck.ckpt"), ("--synchformer", sync_release / "synchformer.pth")
    convert_release = ["convert", sync_release / "release", out / "model", *source[1:]]
    assert "`vae`: the checkpoint does not contain the VAE" in wrong([*convert_release, *sync], capsys)
    assert "`synchformer`: the checkpoint needs it" in wrong([*convert_release, *vae], capsys)
    assert "nix.ckpt" in wrong([*convert_release, *sync, "--vae", out / "nix.ckpt"], capsys)
    assert "does not contain an Oobleck VAE" in wrong([*convert_release, *sync, "--vae", sync[1]], capsys)
    assert list(out.iterdir()) == []


def test_convert_a_hub_checkpoint(monkeypatch, source, fixtures_path, out):
    load = convert.load_original_checkpoint
    monkeypatch.setattr(convert, "load_original_checkpoint", lambda name, **kwargs: load(source[0], **kwargs))
    assert main(["convert", "HKUSTAudio/AudioX", str(out / "model"), *source[1:]]) == 0
    card = ModelCard.load(out / "model/README.md")
    assert card.data.base_model == "HKUSTAudio/AudioX"
    assert "https://huggingface.co/HKUSTAudio/AudioX" in card.text


def test_push_to_hub(monkeypatch, source, out, capsys):
    calls = []

    class Api:
        def create_repo(self, repo_id, exist_ok):
            calls.append(("create", repo_id, exist_ok))
            return type("Url", (str,), {"repo_id": repo_id})(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path):
            calls.append(("upload", repo_id, "README.md" in names(folder_path)))

    monkeypatch.setattr(convert, "HfApi", Api)
    assert main(["convert", source[0], str(out / "model"), *source[1:], "--push-to-hub", "someone/audiox"]) == 0
    assert calls == [("create", "someone/audiox", True), ("upload", "someone/audiox", True)]
    assert capsys.readouterr().out.endswith(f"uploaded {out / 'model'} to https://huggingface.co/someone/audiox\n")
    assert 'from_pretrained("someone/audiox")' in (out / "model/README.md").read_text()


def test_convert_to_a_wrong_target(monkeypatch, source, out, capsys):
    monkeypatch.setattr(convert, "load_original_checkpoint", None)
    (out / "file").write_text("")
    assert "not an empty folder" in wrong(["convert", source[0], out], capsys)
    assert "not a folder" in wrong(["convert", source[0], out / "file"], capsys)
    monkeypatch.chdir(out)
    (out / "file").unlink()
    assert "the current folder, which cannot be replaced" in wrong(["convert", source[0], "."], capsys)
    (out / "file").write_text("")
    mounted = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: path == out / "disk" or mounted(path))
    (out / "disk").mkdir()
    assert f"a mount point, which cannot be replaced. Name a new folder in it: {out / 'disk' / 'audiox'}" in wrong(
        ["convert", source[0], out / "disk"], capsys
    )
    (out / "disk").rmdir()
    assert "no such folder" in wrong(["convert", source[0], out / "a" / "b"], capsys)
    assert "Repo id" in wrong(["convert", source[0], out / "model", "--push-to-hub", "no/repo/id"], capsys)
    assert names(out) == ["file"]


def test_convert_a_wrong_source(source, fixtures_path, out, capsys):
    target = out / "model"
    assert "nix.ckpt: no such file" in wrong(["convert", "nix.ckpt", target, *source[1:]], capsys)
    (out / "model.ckpt").write_bytes(b"no checkpoint")
    config = fixtures_path / "audiox" / "config.json"
    line = wrong(["convert", out / "model.ckpt", target, *source[1:], "--config", config], capsys)
    assert "model.ckpt" in line
    line = wrong(["convert", source[0], target, *source[1:], "--config", out / "nix.json"], capsys)
    assert "nix.json" in line
    assert names(out) == ["model.ckpt"]


def test_convert_needs_a_tokenizer(source, out, capsys):
    without = [*source[1:3], *source[5:]]
    assert main(["convert", source[0], str(out / "model"), *without]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "audiox: error: no tokenizer found: give one with --tokenizer"
    assert list(out.iterdir()) == []


def test_convert_removes_what_a_killed_run_left(source, out):
    for process in (2**22 + 1, os.getppid()):
        (out / f".model.incomplete-{process}").mkdir()
    (out / ".model.incomplete-notes").mkdir()
    assert main(["convert", source[0], str(out / "model"), *source[1:]]) == 0
    assert sorted(os.listdir(out)) == [f".model.incomplete-{os.getppid()}", ".model.incomplete-notes", "model"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError, 2)])
def test_convert_leaves_nothing_half_written(monkeypatch, source, out, error, code):
    save = AudioXPipeline.save_pretrained

    def fail(self, *args, **kwargs):
        save(self, *args, **kwargs)
        raise error

    monkeypatch.setattr(AudioXPipeline, "save_pretrained", fail)
    assert main(["convert", source[0], str(out / "model"), *source[1:]]) == code
    assert list(out.iterdir()) == []
