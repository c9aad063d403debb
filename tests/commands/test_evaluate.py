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


def test_generates_the_set_first(sounds, capsys):
    lines = [{"prompt": f"band {number}", "output": f"{number}.wav", "length": 1} for number in range(3)]
    (sounds / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--set", "set.jsonl", "--model", "audiox-tiny", "--steps", "2", "--metrics", "clap"]
    assert main(["evaluate", "made", *arguments, "--cache", "cache", "--output", "out.json"]) == 0
    assert json.loads((sounds / "out.json").read_text())["settings"]["captioned"] == 3
    assert len(list((sounds / "made").iterdir())) == 3


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
