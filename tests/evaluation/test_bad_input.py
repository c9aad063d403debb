"""Bad files, missing partners and odd lengths: each is named, and nothing is averaged silently over what is left."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, seeded
from small_networks import SmallNetwork

from audiox_diffusers.cli import main
from audiox_diffusers.evaluation import catalog
from audiox_diffusers.evaluation.clips import read_captions
from audiox_diffusers.media import save_audio, save_video

RATE = 16_000


def noise(seed: int, seconds: float = 1.0) -> torch.Tensor:
    return 0.1 * torch.randn(1, round(seconds * RATE), generator=seeded(seed))


def write_float(path: Path, samples: np.ndarray) -> None:
    """Write a WAV of float samples, which can be anything."""
    data = samples.astype("<f4").tobytes()
    chunk = struct.pack("<IHHIIHH", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    path.write_bytes(
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + chunk
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Folders `generated` and `real` with three pairs in the current directory, and small networks."""
    for name in set(catalog.NETWORKS) - {"onsets"}:
        monkeypatch.setitem(catalog.NETWORKS, name, SmallNetwork(name))
    monkeypatch.chdir(tmp_path)
    for side, folder in enumerate(("generated", "real")):
        (tmp_path / folder).mkdir()
        for number in range(3):
            save_audio(f"{folder}/{number}.wav", noise(10 * side + number), RATE)
    return tmp_path


@pytest.fixture
def evaluate(sounds, capsys):
    def run(*words: str, code: int = 0) -> tuple[list[str], dict]:
        assert main(["evaluate", "generated", "--cache", "cache", "--output", "out.json", *words]) == code
        captured = capsys.readouterr()
        if code:
            return captured.err.splitlines(), {}
        return captured.out.splitlines(), json.loads((sounds / "out.json").read_text())

    return run


def write_nan(path):
    write_float(path, np.where(np.arange(RATE) == 7, np.nan, 0.1))


def write_infinite(path):
    write_float(path, np.full(RATE, -np.inf))


def write_cut(path):
    path.write_bytes((path.parent / "0.wav").read_bytes()[:40])


def write_empty(path):
    path.write_bytes(b"")


def write_text(path):
    path.write_text("no sound")


def write_film_without_sound(path):
    save_video(path.with_suffix(".mp4"), torch.zeros(5, 3, 32, 32, dtype=torch.uint8), fps=5)


def write_overflowing(path):
    write_float(path, np.full(RATE, 1e38))


BAD_FILES = {
    write_nan: "has samples that are NaN or infinite",
    write_infinite: "has samples that are NaN or infinite",
    write_cut: "bad.wav",
    write_empty: "the file is empty",
    write_text: "not a sound or video file",
    write_film_without_sound: "has no audio stream",
    write_overflowing: "its features are NaN or infinite",
}


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.__name__)
@pytest.mark.parametrize("side", ["generated", "real"])
def test_files_without_features_are_named_and_do_not_count(evaluate, sounds, bad, side):
    words = ["--reference", "real", "--metrics", "fad", "kl", "kad"]
    _, before = evaluate(*words)
    bad(sounds / side / "bad.wav")
    lines, report = evaluate(*words)
    (line,) = [line for line in lines if line.startswith("left out")]
    assert BAD_FILES[bad] in line and f"{side}/bad." in line
    assert [Path(path).stem for path in report["excluded"]["vggish"]] == ["bad"]
    for figure, other in zip(report["figures"], before["figures"], strict=True):
        assert figure["value"] == other["value"] and figure["count"] == 3


def test_missing_partners_are_counted_and_named(evaluate, sounds):
    (sounds / "real" / "2.wav").rename(sounds / "real" / "other.wav")
    (sounds / "captions.csv").write_text("name,caption\n0,band 1\nother,band 2\n")
    (sounds / "films").mkdir()
    save_video("films/1.mp4", torch.zeros(150, 3, 32, 32, dtype=torch.uint8), fps=25)
    lines, report = evaluate("--reference", "real", "--captions", "captions.csv", "--videos", "films")
    assert [line for line in lines if " of 3 " in line] == [
        "warning: 1 of 3 generated files have no reference of the same name: 2",
        "warning: 2 of 3 generated files have no caption: 1, 2",
        "warning: 2 of 3 generated files have no video of the same name: 0, 2",
        "warning: 1 of 3 reference files have no generated file of the same name: other",
    ]
    counts = {figure["metric"]: figure["count"] for figure in report["figures"]}
    assert counts["fad"] == 3 and counts["kl"] == 2 and counts["clap"] == 1
    assert "left out of synchformer: 1: DeSync needs clips of at least 4.8 s" in "\n".join(lines)
    assert report["skipped"]["desync"]


def test_without_any_pair_the_metrics_of_pairs_say_so(evaluate, sounds):
    for number in range(3):
        (sounds / "real" / f"{number}.wav").rename(sounds / "real" / f"r{number}.wav")
    lines, report = evaluate("--reference", "real")
    assert "kl" not in [figure["metric"] for figure in report["figures"]]
    assert report["skipped"]["kl"] == "needs --reference with files of the same names"
    assert report["skipped"]["clap"] == "needs --captions"
    lines, _ = evaluate("--reference", "real", "--metrics", "kl", code=2)
    assert lines == ["audiox: error: --metrics kl needs --reference with files of the same names"]


@pytest.mark.parametrize(
    "lengths, words, warning",
    [
        ((1.0, 1.0, 1.0), (), None),
        ((1.0, 1.0, 2.0), (), "lengths differ: generated 1.00 to 2.00 s, reference 1.00 s"),
        ((2.0, 2.0, 2.0), (), "lengths differ: generated 2.00 s, reference 1.00 s"),
        ((2.0, 2.0, 2.0), ("--audio-length", "1"), None),
        (
            (1.0, 1.0, 2.0),
            ("--audio-length", "1.5"),
            "2 of 3 generated files are shorter than the 1.5 s of --audio-length: 1.00 to 1.50 s",
        ),
        (
            (2.0, 2.0, 2.0),
            ("--audio-length", "2"),
            "3 of 3 reference files are shorter than the 2 s of --audio-length",
        ),
    ],
)
def test_other_lengths_are_a_warning(evaluate, lengths, words, warning):
    for number, seconds in enumerate(lengths):
        save_audio(f"generated/{number}.wav", noise(number, seconds), RATE)
    lines, report = evaluate("--reference", "real", "--metrics", "fad", *words)
    found = [line for line in report["warnings"] if "length" in line]
    assert found == [] if warning is None else warning in found[0]


def test_warnings_are_about_figures_that_exist(evaluate, monkeypatch):
    class Missing(SmallNetwork):
        def load(self, folder, device):
            raise FileNotFoundError("no weights")

    monkeypatch.setitem(catalog.NETWORKS, "passt", Missing("passt"))
    _, report = evaluate("--reference", "real")
    assert (
        "fad overestimates the distance: 3 generated and 3 reference clips are few for 12 dimensions"
        in (report["warnings"])
    )
    assert not [line for line in report["warnings"] if line.startswith("fd-passt")]


@pytest.mark.parametrize(
    "words, message",
    [
        (["empty"], "GENERATED empty: has no .aac"),
        (["generated", "--reference", "empty"], "--reference empty: has no .aac"),
        (["generated", "--videos", "real"], "--videos real: has no .avi"),
        (["generated", "--videos", "text"], "--videos text: not a folder"),
        (["generated", "--weights", "text"], "--weights text: not a folder"),
        (["generated", "--captions", "real"], "--captions real: not a file"),
        (["generated", "--set", "real", "--model", "audiox-tiny"], "--set real: not a file"),
        (["generated", "--model", "audiox-tiny"], "--set and --model go together"),
        (["generated", "--reference", "real", "--metrics", "fad,nosuch"], "--metrics nosuch: unknown"),
        (["generated", "--reference", "s.npz", "--metrics", "kad"], "--metrics kad needs --reference with a folder"),
    ],
)
def test_wrong_folders_and_options_end_with_one_line(sounds, capsys, words, message):
    (sounds / "empty").mkdir()
    (sounds / "text").write_text("text")
    (sounds / "s.npz").write_bytes(b"")
    assert main(["evaluate", *words, "--cache", "cache"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("audiox: error: ") and message in line
    assert not (sounds / "cache").exists()


def test_a_damaged_cache_is_computed_again(evaluate, sounds):
    words = ["--reference", "real", "--metrics", "fad"]
    _, before = evaluate(*words)
    files = sorted((sounds / "cache").rglob("*.safetensors"))
    for file, content in zip(files, (b"", b"junk", files[2].read_bytes()[:50]), strict=False):
        file.write_bytes(content)
    _, after = evaluate(*words)
    assert after["figures"] == before["figures"]


CAPTIONS = {
    "a row without a caption": ('{"name": "0", "caption": "rain"}\n{"name": "1"}', "line 2: has no text in caption"),
    "a row without a name": ('{"name": "0", "caption": "rain"}\n{"caption": "x"}', "line 2: has no name in name"),
    "a blank caption": ('{"name": "0", "caption": " "}', "line 1: has no text in caption"),
    "a list of captions": ('{"name": "0", "caption": ["rain", "snow"]}', "line 1: has no text in caption"),
    "a list of rows": ('[{"name": "0", "caption": "rain"}]', "has no rows with names and captions"),
    "no JSON": ("name,caption\n0,rain", "must be CSV or have a JSON object on each line"),
    "nothing": ("", "has no rows with names and captions"),
    "other columns": ('{"clip": "0", "words": "rain"}', "needs a column of name"),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions_that_cannot_be_used_name_file_and_line(tmp_path, case):
    content, message = CAPTIONS[case]
    (tmp_path / "c.jsonl").write_text(content)
    with refused("--captions", "c.jsonl", message):
        read_captions(tmp_path / "c.jsonl")


def test_rows_of_csv_may_lack_cells_but_not_captions(tmp_path):
    (tmp_path / "c.csv").write_text('name,caption\n0,"two\nlines"\n1\n')
    with refused("c.csv, line 4: has no text in caption"):
        read_captions(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text('name,caption\n0,"two\nlines"\n')
    assert read_captions(tmp_path / "c.csv") == {"0": "two\nlines"}


def test_several_captions_of_a_name_are_a_warning(evaluate, sounds):
    (sounds / "c.csv").write_text("name,caption\n0,band 1\n0,band 2\n1,band 3\n1,band 3\n")
    _, report = evaluate("--captions", "c.csv", "--metrics", "clap")
    assert "c.csv has several captions for some names (1), and the first of each counts" in report["warnings"]
