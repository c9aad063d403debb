"""`audiox generate --batch`: several lines at a time, and lines spread over two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.cli import main
from audiox_diffusers.commands import batch
from audiox_diffusers.media import load_audio, save_audio
from audiox_diffusers.testing import SAMPLING_RATE, create_small_pipeline

# A process that ends in the middle of its second sound.
DYING = """
import os, sys
from audiox_diffusers.cli import main
from audiox_diffusers.commands import batch

finish, calls = batch.finish, []

def die(*args):
    calls.append(args)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        os._exit(9)
    return finish(*args)

batch.finish = die
sys.exit(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "audiox-small"
    create_small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def lines(tmp_path):
    """Write a file of lines."""

    def write(*values: dict) -> Path:
        path = tmp_path / "lines.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    return write


@pytest.fixture
def command(model, tmp_path):
    """The words of a run after `audiox`, into a folder."""

    def words(path: Path, folder: str, *options: object) -> list[str]:
        command = ["generate", "--model", model, "--batch", path, "--steps", 2, "-o", tmp_path / folder, *options]
        return [str(word) for word in command]

    return words


@pytest.fixture
def launch():
    """Run in two processes: torch's launcher does on a CPU what `accelerate launch` does with GPUs."""

    def run(*words: object) -> subprocess.CompletedProcess:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [*launcher, *map(str, words)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """The prompts of each call of the pipeline."""
    calls = []
    call = AudioXPipeline.__call__

    def record(self, *args, **kwargs):
        calls.append(kwargs["prompt"])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(AudioXPipeline, "__call__", record)
    return calls


def sounds(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def errors(said: str) -> list[str]:
    # One process may write in the middle of another's progress bar.
    return re.findall("audiox: error: .*", said)


def test_lines_of_one_length_are_made_together(command, lines, calls, tmp_path, capsys):
    """In the order in which a batch is full; what they sound like does not depend on it."""
    save_audio(tmp_path / "tone.wav", 0.5 * torch.sin(torch.arange(SAMPLING_RATE) * 0.2), SAMPLING_RATE)
    path = lines(
        {"prompt": "a"},
        {"prompt": "b", "length": 1},
        {"prompt": "c", "audio": "tone.wav"},
        {"prompt": "d", "negative_prompt": "music"},
        {"prompt": "e", "length": 1.0, "seed": 0},
        {"prompt": "f", "length": 3},
        {"prompt": "g"},
        {"prompt": "h", "length": 3},
    )
    assert main(command(path, "alone")) == 0
    assert calls == [["a"], ["b"], ["c"], ["d"], ["e"], ["f"], ["g"], ["h"]]
    calls.clear()
    capsys.readouterr()
    assert main(command(path, "together", "--batch-size", 2)) == 0
    assert calls == [["a", "c"], ["b", "e"], ["f", "h"], ["d"], ["g"]]
    assert capsys.readouterr().out.splitlines()[-1] == "wrote 8, skipped 0, failed 0"

    for number in range(1, 9):
        alone, _ = load_audio(tmp_path / "alone" / f"{number:05}.wav")
        together, _ = load_audio(tmp_path / "together" / f"{number:05}.wav")
        assert alone.abs().max() > 0.1
        assert (alone - together).abs().max() <= 2 / 2**15  # 16-bit steps


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not this one"),
        OSError("not this one"),
        TypeError("not this one"),
        RuntimeError("not this one"),
        MemoryError("not this one"),
        OverflowError("not this one"),
        AssertionError("not this one"),
        StopIteration("not this one"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_line_that_fails_leaves_its_batch_alone(monkeypatch, command, lines, tmp_path, capsys, error):
    """Whether its files are found wrong before, or it fails in the call, or in writing."""
    call, finish = AudioXPipeline.__call__, batch.finish

    def fail(self, *args, **kwargs):
        if "c" in kwargs["prompt"]:
            raise error
        return call(self, *args, **kwargs)

    def fail_later(pipe, request, *args):
        if request.prompt == "e":
            raise error
        return finish(pipe, request, *args)

    monkeypatch.setattr(AudioXPipeline, "__call__", fail)
    monkeypatch.setattr(batch, "finish", fail_later)
    path = lines({"prompt": "a"}, {"audio": "nix.wav"}, {"prompt": "c"}, {"prompt": "d"}, {"prompt": "e"})
    assert main(command(path, "out", "--batch-size", 5, "--length", "0.1")) == 2
    said = capsys.readouterr()
    assert sorted(sounds(tmp_path / "out")) == ["00001.wav", "00004.wav"]
    assert said.out.splitlines()[-1] == "wrote 2, skipped 0, failed 3"
    first, second, third = errors(said.err)
    assert "line 2: " in first and "nix.wav: no such file" in first
    assert "line 3: " in second and "not this one" in second
    assert "line 5: " in third and "not this one" in third


def test_batch_size_is_checked(command, lines, model, tmp_path, capsys):
    assert main(command(lines({"prompt": "a"}), "out", "--batch-size", 0)) == 2
    assert "--batch-size: must be a whole number from 1 to 1024, got '0'" in capsys.readouterr().err
    single = ["generate", "--model", str(model), "--prompt", "a", "-o", str(tmp_path / "a.wav"), "--batch-size", "2"]
    assert main(single) == 2
    assert "--batch-size goes with --batch only" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_the_lines(command, lines, launch, tmp_path):
    """Each file is written once. Both processes tell what fails, and one of them all else."""
    path = lines({"prompt": "a"}, {"audio": "nix.wav"}, {"prompt": "c"}, {"prompt": "d"}, {"prompt": "e"})
    assert main(command(path, "one")) == 2
    result = launch("-m", "audiox_diffusers.cli", *command(path, "two"))
    assert result.returncode != 0
    assert sounds(tmp_path / "two") == sounds(tmp_path / "one") and len(sounds(tmp_path / "two")) == 4
    told = [line.split(":")[0].rsplit("/")[-1] for line in result.stdout.splitlines()]
    assert told == ["00001.wav", "00003.wav", "00005.wav", "wrote 4, skipped 0, failed 1"]
    (error,) = errors(result.stderr)
    assert "line 2: " in error


@pytest.mark.slow
def test_two_processes_go_on_where_others_were_stopped(command, lines, launch, tmp_path):
    path = lines(*({"prompt": letter} for letter in "abcdefg"))
    assert main(command(path, "one")) == 0
    script = tmp_path / "script.py"
    script.write_text(DYING)
    assert launch(script, *command(path, "two")).returncode != 0
    first = {name: data for name, data in sounds(tmp_path / "two").items() if not name.startswith(".")}
    assert "00002.wav" in first and "00004.wav" not in first
    times = {name: (tmp_path / "two" / name).stat().st_mtime_ns for name in first}

    result = launch("-m", "audiox_diffusers.cli", *command(path, "two"))
    assert result.returncode == 0, result.stderr
    counts = f"wrote {7 - len(first)}, skipped {len(first)}, failed 0"
    assert result.stdout.splitlines()[-1] == counts
    assert {name: (tmp_path / "two" / name).stat().st_mtime_ns for name in first} == times
    for name, data in sounds(tmp_path / "one").items():
        assert (tmp_path / "two" / name).read_bytes() == data
