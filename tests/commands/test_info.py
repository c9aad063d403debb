"""`audiox info`, and the commands that generate a sound again."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiox_diffusers.cli import main
from audiox_diffusers.generation.reproduce import command_line, python_code, quote
from audiox_diffusers.media import Recipe, load_audio, read_recipe, save_audio, save_video
from audiox_diffusers.testing import SAMPLING_RATE, create_small_pipeline

HOSTILE = [
    "rain",
    'it\'s "quoted"',
    "$(touch pwned) `touch pwned` $HOME",
    "-x --help",
    "a\nb; touch pwned\n",
    "\x1b]0;title\x07 \x9b31m",
    "bidi \u202e text",
    "back\\slash'\n\\x41f",
    "{}*?~!#&|<>",
    "'''\"\"\"\\",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model and input files."""
    folder = tmp_path_factory.mktemp("info")
    create_small_pipeline().save_pretrained(folder / "small")
    rate = SAMPLING_RATE
    tone = 0.5 * np.sin(np.arange(4 * rate) * 0.1, dtype=np.float32)
    frames = np.random.default_rng(0).integers(0, 256, (20, 32, 48, 3), dtype=np.uint8)
    save_audio(folder / "a tone.wav", np.stack([tone, tone]), rate)
    save_video(folder / "clip.mp4", frames, fps=10)
    return folder


def printed(capsys, file: str) -> list[str]:
    assert main(["info", file]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["generate", "--prompt", HOSTILE[2] + HOSTILE[4], "--length", "0.3", "--normalize"], "a sound.wav"),
        (["generate", "--prompt", "rain", "--negative-prompt=-x", "--guidance=3", "--seed", "9"], "sound.flac"),
        (["generate", "--audio", "a tone.wav", "--audio-padding", "left", "--window-batch", "1"], "sound.mp3"),
        (["generate", "--video", "clip.mp4", "--guidance=-1.5"], "film.mp4"),
        (["edit", "--audio", "a tone.wav", "--inpaint", "0.25-0.5", "--strength", "0.5"], "-sound.opus"),
        (["generate", "--prompt", "rain", "--guider", "apg:eta=0.5", "--negative-audio", "a tone.wav"], "apg.wav"),
        (
            ["generate", "--prompt", "a", "--negative-video", "clip.mp4", "--guidance", "text=2,video=1.5"]
            + ["--guidance-interval", "0.1-0.9"],
            "weights.wav",
        ),
        (["edit", "--audio", "a tone.wav", "--extend=-0.2", "--prompt", "rain", "--crossfade", "5"], "sound.m4a"),
    ],
)
def test_printed_command_generates_the_same_sound(folder, monkeypatch, capsys, words, output):
    monkeypatch.chdir(folder)
    assert main([*words, "--model", str(folder / "small"), "--steps", "2", f"--output={output}"]) == 0
    capsys.readouterr()
    lines = printed(capsys, f"./{output}")
    assert str(folder) not in "\n".join(lines)
    (command,) = [line for line in lines if line.startswith("audiox ")]
    # The shell expands the line itself.
    result = subprocess.run(["bash", "-c", f"audiox() {{ printf '%s\\0' \"$@\"; }}; {command}"], capture_output=True)
    assert main(result.stdout.decode().split("\0")[:-1]) == 0
    again = f"{Path(output).stem}-again{Path(output).suffix}"
    assert read_recipe(again) == read_recipe(output)
    if not output.endswith(".opus"):  # Ogg streams have random serial numbers.
        assert Path(again).read_bytes() == Path(output).read_bytes()
    assert (load_audio(again)[0] == load_audio(output)[0]).all()
    assert not Path("pwned").exists()


def test_printed_python_generates_the_same_sound(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    model = str(folder / "small")
    generate = ["generate", "--prompt", HOSTILE[9], "--steps", "2", "--length", "0.3", "--model", model]
    assert main([*generate, "-o", "one.wav"]) == 0
    edit = ["edit", "--audio", "a tone.wav", "--inpaint", "0.25-0.5", "--steps", "2", "--model", model]
    assert main([*edit, "-o", "two.wav"]) == 0
    assert main([*generate, "--guider", "apg", "--negative-audio", "a tone.wav", "-o", "three.wav"]) == 0
    capsys.readouterr()
    for name in ("one", "two", "three"):
        lines = printed(capsys, f"{name}.wav")
        exec("\n".join(lines[lines.index("import torch") :]), {})
        assert (load_audio(f"{name}-again.wav")[0] == load_audio(f"{name}.wav")[0]).all()


def test_no_metadata(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    generate = ["generate", "--prompt", "a secret", "--steps", "1", "--model", "small", "--no-metadata"]
    assert main([*generate, "-o", "plain.wav"]) == 0
    assert read_recipe("plain.wav") is None and b"secret" not in Path("plain.wav").read_bytes()
    capsys.readouterr()
    assert printed(capsys, "plain.wav")[1].startswith("no recipe: ")


def test_recipes_of_several_sounds(folder, tmp_path):
    model = ["--model", str(folder / "small"), "--steps", "1"]
    assert main(["generate", "--prompt", "a", "--seed", "5", "--num", "2", *model, "-o", str(tmp_path / "s.wav")]) == 0
    (tmp_path / "lines.jsonl").write_text('{"prompt": "b", "output": "b.ogg"}\n{"prompt": "c", "seed": 8}\n')
    assert main(["generate", "--batch", str(tmp_path / "lines.jsonl"), *model, "-o", str(tmp_path)]) == 0
    recipes = [read_recipe(tmp_path / name) for name in ("s-1.wav", "s-2.wav", "b.ogg", "00002.wav")]
    assert [(recipe.prompt, recipe.seed, recipe.model) for recipe in recipes] == [
        ("a", 5, "small"),
        ("a", 6, "small"),
        ("b", 0, "small"),
        ("c", 8, "small"),
    ]


def test_info_of_other_files(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert printed(capsys, "clip.mp4")[0] == "clip.mp4: 2.00 s of video of 48x32 pixels"
    (folder / "text.wav").write_text("no sound")
    for name, message in (("missing.wav", "missing.wav: no such file"), ("text.wav", "text.wav: not a sound")):
        assert main(["info", name]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_in_commands(text):
    quoted = quote(text)
    assert quoted.isprintable()
    assert subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True).stdout == text.encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_foreign_files_are_never_code(tmp_path, text):
    """The command and the program contain each text as one literal."""
    recipe = Recipe(model=text, seed=0, prompt=text, negative_prompt=text, audio=text, strength=0.5)
    command = command_line(recipe, text)
    assert command.isprintable()
    if text.isprintable():
        words = shlex.split(command)
        assert words[:2] == ["audiox", "edit"] and sum(word.endswith(text) for word in words) == 5
    code = python_code(recipe, text)
    assert all(line.isprintable() for line in code.splitlines())
    compile(code, "code", "exec")
    assert code.count(repr(text)) >= 5


def test_adapters_need_python(tmp_path, capsys):
    recipe = Recipe(model="m", seed=0, prompt="a", lora=(("style", 0.5),))
    save_audio(tmp_path / "sound.wav", np.zeros(100, dtype=np.float32), 8000, recipe=recipe)
    lines = printed(capsys, str(tmp_path / "sound.wav"))
    assert not [line for line in lines if line.startswith("audiox ")]
    assert "pipe.load_lora_weights('style', adapter_name='lora_0')" in lines


def test_info_starts_without_the_networks():
    code = "import sys; sys.modules['transformers'] = None; from audiox_diffusers.cli import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code, "info", "missing.wav"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "audiox: error: missing.wav: no such file\n"
