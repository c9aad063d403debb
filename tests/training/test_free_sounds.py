"""The script that writes free sounds as a dataset, and its table."""

import csv
from pathlib import Path

import pytest
import torch
from helpers import load_script, tone

from audiox_diffusers.media import MediaError, load_audio, save_audio
from audiox_diffusers.training.data.sources import DatasetSource

FOLDER = Path(__file__).resolve().parents[2] / "training" / "free_sounds"
COLUMNS = ["package", "path", "caption", "licence", "copyright"]


@pytest.fixture(scope="module")
def script():
    return load_script(FOLDER / "make_sounds.py")


@pytest.fixture
def packages(tmp_path):
    """Create two packages with a sound each. Both start with silence, and one is longer than the maximum."""
    folder = tmp_path / "packages"
    for path, sound in (
        ("one/usr/bell.flac", tone(1, 8000, level=0.1)),
        ("two/usr/rain.ogg", tone(14, 8000, level=0.1)),
    ):
        (folder / path).parent.mkdir(parents=True)
        save_audio(folder / path, torch.cat((torch.zeros(4000), sound)), 8000)
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerow(["one", "usr/bell.flac", "a bell", "CC0-1.0", "someone"])
        writer.writerow(["two", "usr/rain.ogg", "rain", "CC-BY-SA-3.0", "another"])
    return folder


def test_every_sound_has_a_caption_and_a_free_licence(script):
    with open(script.TABLE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and all(all(row.values()) for row in rows)
    assert len({(row["package"], row["path"]) for row in rows}) == len(rows) == 387
    assert {row["licence"] for row in rows} == {"CC0-1.0", "MIT", "CC-BY-3.0", "CC-BY-SA-3.0"}


def test_letters_are_of_one_kind_and_free(script):
    with open(FOLDER / "letters.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and all(all(row.values()) for row in rows)
    assert len({row["path"] for row in rows}) == len(rows) == 44
    assert {(row["caption"], row["licence"]) for row in rows} == {("a voice reads a letter", "GPL-2+")}


def test_writes_a_folder_that_datasets_loads(script, packages, tmp_path):
    assert script.write_sounds(tmp_path / "sounds", packages, tmp_path / "table.csv") == 2
    first, second = (load_audio(tmp_path / "sounds" / name) for name in ("00000.wav", "00001.wav"))
    assert first[1] == second[1] == 16000
    assert first[0].shape[1] == pytest.approx(16000, abs=100)
    assert second[0].shape == (1, 12 * 16000)
    assert first[0].abs().max().item() == pytest.approx(0.8, abs=1e-3)
    rows = list(DatasetSource(str(tmp_path / "sounds")).rows(0))
    assert [row["caption"] for row in rows] == ["a bell", "rain"]
    assert rows[1]["licence"] == "CC-BY-SA-3.0" and rows[1]["copyright"] == "another"


def test_no_partial_folder_after_an_error(script, packages, tmp_path):
    (packages / "two/usr/rain.ogg").write_bytes(b"no sound")
    with pytest.raises(MediaError, match="rain.ogg"):
        script.write_sounds(tmp_path / "sounds", packages, tmp_path / "table.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages", "table.csv"]


def test_existing_folders_are_not_changed(script, packages, tmp_path):
    (tmp_path / "sounds").mkdir()
    with pytest.raises(FileExistsError, match="sounds"):
        script.write_sounds(tmp_path / "sounds", packages, tmp_path / "table.csv")
    assert not list((tmp_path / "sounds").iterdir())
