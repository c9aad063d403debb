import json

import pytest
import torch
from helpers import tone
from small_networks import SmallNetwork

from audiox_diffusers.cli import main
from audiox_diffusers.evaluation import catalog
from audiox_diffusers.media import save_audio


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Folders `generated` and `reference` in the current directory, and small networks."""
    for name in list(catalog.NETWORKS):
        monkeypatch.setitem(catalog.NETWORKS, name, SmallNetwork(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for folder, level in (("generated", 0.2), ("reference", 0.5)):
        (tmp_path / folder).mkdir()
        for number in range(4):
            sound = tone(frequency=300.0 * (number + 1), level=level)
            save_audio(tmp_path / folder / f"{number}.wav", sound[None], 16_000)
    return tmp_path


def test_prints_a_table_and_writes_json(sounds, capsys):
    arguments = ["--reference", "reference", "--metrics", "fad", "kl", "--cache", "cache", "--output", "out.json"]
    assert main(["evaluate", "generated", *arguments]) == 0
    output = capsys.readouterr().out
    assert "| fad (FD-VGG)" in output and "wrote out.json" in output
    report = json.loads((sounds / "out.json").read_text())
    assert report["FD-VGG"] > 0 and report["KL-PANNS-softmax"] > 0
    assert sorted(path.name for path in sounds.iterdir()) == ["cache", "generated", "out.json", "reference"]


@pytest.fixture
def evaluate_set(sounds, capsys):
    """Write a set and evaluate it with audiox-tiny in the folder `made`."""

    def run(*lines: dict, options: tuple[str, ...] = (), code: int = 0) -> tuple[str, dict]:
        (sounds / "set.jsonl").write_text("\n".join(json.dumps({"length": 1, **line}) for line in lines))
        words = ["--set", "set.jsonl", "--model", "audiox-tiny", "--steps", "2", "--metrics", "clap", *options]
        assert main(["evaluate", "made", *words, "--cache", "cache", "--output", "out.json"]) == code
        captured = capsys.readouterr()
        return (captured.err, {}) if code else (captured.out, json.loads((sounds / "out.json").read_text()))

    return run


LINES = tuple({"prompt": f"band {number}", "output": f"{number}.wav"} for number in range(3))


def test_generates_the_set_first_and_says_how(evaluate_set, sounds):
    _, report = evaluate_set(*LINES, options=("--seed", "5"))
    assert report["settings"]["captioned"] == 3
    assert len(list((sounds / "made").iterdir())) == 3
    (recipe,) = report["settings"]["recipes"]
    assert recipe["model"] == "audiox-tiny" and recipe["steps"] == 2
    assert report["settings"]["arguments"]["seed"] == 5


def test_only_outputs_of_the_set_count(evaluate_set, sounds):
    (sounds / "made").mkdir()
    save_audio("made/old.wav", tone()[None], 16_000)
    output, report = evaluate_set(*LINES)
    assert report["settings"]["generated"] == report["figures"][0]["count"] == 3
    assert "warning: files in GENERATED that are not outputs of --set were left out (1): old" in output


@pytest.mark.parametrize(
    "line, options, message",
    [
        ({}, ("--steps", "3"), "made/0.wav: was generated with steps 2, not 3"),
        ({}, ("--guidance", "2"), "made/0.wav: was generated with guidance 3.0, not 2.0"),
        ({"seed": 4}, (), "made/0.wav: was generated with seed 0, not 4"),
        ({"prompt": "band 7"}, (), "made/0.wav: was generated with prompt band 0, not band 7"),
    ],
)
def test_sounds_of_another_run_are_refused(evaluate_set, line, options, message):
    evaluate_set(*LINES[:1])
    error, _ = evaluate_set({**LINES[0], **line}, options=options, code=2)
    assert message in error and "choose another folder" in error


def test_a_second_run_goes_on_with_the_sounds_of_the_first(evaluate_set, sounds):
    _, first = evaluate_set(*LINES)
    times = {path: path.stat().st_mtime_ns for path in (sounds / "made").iterdir()}
    output, second = evaluate_set(*LINES)
    assert "wrote 0, skipped 3" in output and second["figures"] == first["figures"]
    assert times == {path: path.stat().st_mtime_ns for path in (sounds / "made").iterdir()}


def test_two_outputs_of_one_stem_are_refused_before_generating(evaluate_set, sounds):
    error, _ = evaluate_set(LINES[0], {"prompt": "band 1", "output": "more/0.flac"}, code=2)
    assert "--set set.jsonl, line 2: another output is called 0" in error
    assert not (sounds / "made").exists()


def test_a_line_that_fails_ends_the_command(evaluate_set, sounds):
    error, _ = evaluate_set(LINES[0], {"prompt": 3}, code=2)
    assert "set.jsonl, line 2: prompt is of the wrong type" in error
    assert error.splitlines()[-1].endswith("--set set.jsonl: nothing was evaluated, because lines failed")
    assert not (sounds / "out.json").exists()


def test_statistics_stand_for_a_folder(sounds, capsys):
    options = ["--cache", "cache", "--metrics"]
    assert main(["evaluate", "generated", "--reference", "reference", *options, "fad", "--output", "a.json"]) == 0
    assert main(["evaluate", "reference", *options, "fad", "--save-statistics", "reference.npz"]) == 0
    assert "wrote reference.npz: vggish (8 embeddings)" in capsys.readouterr().out
    assert main(["evaluate", "generated", "--reference", "reference.npz", *options, "fad", "--output", "b.json"]) == 0
    a, b = (json.loads((sounds / name).read_text())["FD-VGG"] for name in ("a.json", "b.json"))
    assert a == pytest.approx(b)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such folder"),
        (["generated", "--metrics", "fda"], "--metrics fda: unknown"),
        (["generated", "--metrics", "clap"], "--metrics clap needs --captions"),
        (["generated", "--captions", "nowhere.csv"], "--captions nowhere.csv: no such file"),
        (["generated", "--set", "set.jsonl"], "--set and --model go together"),
        (["generated", "--output", "nowhere/out.json"], "nowhere: no such folder"),
        (["generated", "--audio-length", "nan"], "--audio-length: must be a number"),
    ],
)
def test_wrong_arguments_end_with_one_line(sounds, capsys, arguments, message):
    assert main(["evaluate", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (sounds / "home").exists()


def test_sounds_are_measured_at_their_own_rate(sounds):
    save_audio(sounds / "generated" / "0.wav", torch.zeros(2, 44_100) + 0.1, 44_100)
    main(["evaluate", "generated", "--metrics", "pq", "--cache", "cache", "--output", "out.json"])
    assert json.loads((sounds / "out.json").read_text())["settings"]["sampling_rates"] == [16_000, 44_100]
