"""`audiox demo`: its files, its page, and what it leaves when it fails."""

import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import tone
from PIL import Image

from audiox_diffusers.cli import main
from audiox_diffusers.commands import demo
from audiox_diffusers.commands.checks import DEMO_MARK
from audiox_diffusers.commands.demo_page import Example, Section
from audiox_diffusers.media import load_audio, load_video, save_audio, spectrogram_picture
from audiox_diffusers.media.sound_picture import WAVEFORM_HEIGHT, sound_picture

TEXTS = ("three-bell-strikes", "rain", "a-siren-then-two-drum-beats", "a-bird-singing")
HEARD = {
    *(f"{name}.wav" for name in TEXTS),
    "sound-of-the-picture.wav",
    "gap.wav",
    "filled.wav",
    "scene-with-sound.mp4",
}
FILES = {*HEARD, *(str(Path(name).with_suffix(".png")) for name in HEARD), "scene.mp4", "picture.png", "index.html"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder, and the lines that were printed."""
    folder = tmp_path_factory.mktemp("demo") / "demo-output"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(demo, "say", lines.append)
        assert main(["demo", "--output", str(folder)]) == 0
    return folder, lines


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Page(HTMLParser):
    """The links of a page, and whether each tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [(tag, value) for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.slow
def test_one_line_is_printed_per_file(made):
    folder, lines = made
    assert names(folder) == FILES and names(folder.parent) == {folder.name}
    assert {line.removeprefix("made ") for line in map(str, lines[:-1])} == FILES
    assert lines[-1] == f"wrote {folder}: open {folder / 'index.html'}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HEARD))
def test_each_sound_is_heard_and_pictured(made, name):
    folder, _ = made
    sound, rate = load_audio(folder / name)
    # AAC frames of 1024 samples may be padded.
    assert rate == 16000 and len(sound) == 1 and 64000 <= sound.shape[1] < 64000 + 2048
    assert sound.abs().max() > 0.01
    picture = np.asarray(Image.open((folder / name).with_suffix(".png")))
    assert np.array_equal(picture[WAVEFORM_HEIGHT:], spectrogram_picture(sound, rate))


def test_waveform_of_a_known_sound(tmp_path):
    """Silence is one row; a sine of 0.5 covers half of the height, and positive samples only the upper half."""
    sound = torch.cat((torch.zeros(8000), tone(0.5, 16000, 1000, 0.5), torch.full((8000,), 0.8)))
    save_audio(tmp_path / "a.wav", sound, 16000)
    drawn = np.asarray(sound_picture(tmp_path / "a.wav"))[:WAVEFORM_HEIGHT].any(axis=-1)
    third = drawn.shape[1] // 3
    assert (drawn[:, : third - 1].sum(axis=0) == 1).all() and drawn[WAVEFORM_HEIGHT // 2].all()
    assert (abs(drawn[:, third + 1 : 2 * third - 1].sum(axis=0) - WAVEFORM_HEIGHT / 2) <= 1).all()
    last = drawn[:, 2 * third + 2 :]
    assert last[10 : WAVEFORM_HEIGHT // 2].all() and not last[:9].any() and not last[WAVEFORM_HEIGHT // 2 + 1 :].any()


@pytest.mark.slow
def test_the_page_shows_every_file_and_nothing_else(made):
    folder, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and text.startswith("<!DOCTYPE html>")
    assert {link for _, link in page.links} == FILES - {"index.html"}
    for name in FILES - {"index.html"}:
        tag = {".wav": "audio", ".mp4": "video", ".png": "img"}[Path(name).suffix]
        assert (tag, name) in page.links
    for words in ("Three bell strikes", "The silent video", "With generated sound", "audiox generate --model audiox"):
        assert words in text


@pytest.mark.slow
def test_the_video_is_silent_and_flashes_when_the_page_says_so(made):
    folder, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    said = re.search(r"drum flashes at ([\d.]+) and ([\d.]+) seconds, and a bell at ([\d.]+) and ([\d.]+)\.", text)
    frames = load_video(folder / "scene.mp4", fps=25).float().mean(dim=(1, 2, 3))
    brighter = (frames.diff() > 1).nonzero().flatten() + 1
    assert [frame / 25 for frame in brighter.tolist()] == [float(seconds) for seconds in said.groups()]
    with av.open(str(folder / "scene.mp4")) as silent, av.open(str(folder / "scene-with-sound.mp4")) as sounding:
        assert not silent.streams.audio and sounding.streams.audio
        pictures = [
            [bytes(packet) for packet in container.demux(video=0) if packet.size] for container in (silent, sounding)
        ]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_only_the_gap_changes(made):
    folder, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    first, last = re.search(r"silent from ([\d.]+) to ([\d.]+) seconds", text).groups()
    first, last, fade = round(float(first) * 16000), round(float(last) * 16000), round(0.02 * 16000)
    gap, filled = (load_audio(folder / f"{name}.wav")[0] for name in ("gap", "filled"))
    assert not gap[:, first:last].any() and gap[:, first - 1000 : first].any() and gap[:, last : last + 1000].any()
    assert filled[:, first:last].any()
    for kept in (slice(0, first - fade), slice(last + fade, None)):
        assert (filled[:, kept] == gap[:, kept]).all()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["three-bell-strikes.wav", "scene-with-sound.mp4", "filled.wav"])
def test_the_commands_of_the_page_generate_the_same(made, output, monkeypatch):
    folder, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    blocks = "\n\n".join(re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL))
    commands = [shlex.split(unescape(command))[1:] for command in blocks.replace("\\\n", "").split("\n\n")]
    (command,) = (words for words in commands if words[-1] == output)
    monkeypatch.chdir(folder)
    assert main([*command[:-1], f"again-{output}"]) == 0
    again = Path(f"again-{output}")
    expected, actual = (load_audio(path)[0] for path in (output, again))
    again.unlink()
    assert (expected == actual).all()


# With one short sound instead


@pytest.fixture
def short(monkeypatch):
    example = Example("generate --prompt rain --steps 1 --length 0.1 --output rain.wav", "Rain <b>")
    monkeypatch.setattr(demo, "SECTIONS", (Section("Text & sound", "Very <short>.", (example,)),))


def test_words_are_escaped_on_the_page(short, tmp_path):
    assert main(["demo", "--output", str(tmp_path / "new")]) == 0
    text = (tmp_path / "new" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Text &amp; sound</h2>" in text and "Very &lt;short&gt;." in text and "Rain &lt;b&gt;" in text


def test_a_demo_replaces_a_demo_and_keeps_other_files(short, tmp_path):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "rain.wav").write_text("old")
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert load_audio(tmp_path / "rain.wav")[0].shape == (1, 1600)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_missing_parent(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "a" / "b")]) == 2
    assert capsys.readouterr().err == f"audiox: error: {tmp_path / 'a'}: no such folder\n"


def test_a_file_instead_of_the_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"audiox: error: {tmp_path / 'file'}: not a folder\n"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["index.html", "filled.png", "scene.mp4"])
def test_a_folder_instead_of_a_file(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert main(["demo", "--output", str(tmp_path)]) == 2
    message = f"audiox: error: --output {tmp_path}: not an empty folder, and no demo; name another folder\n"
    assert capsys.readouterr().err == message and names(tmp_path) == {name}


@pytest.mark.parametrize("error, code", [(OSError("no space left"), 2), (KeyboardInterrupt(), 130)])
def test_a_failure_leaves_nothing(short, tmp_path, monkeypatch, error, code):
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "index.html").write_text(DEMO_MARK)
    (tmp_path / "before" / "rain.wav").write_text("old")

    def fail(*args):
        raise error

    monkeypatch.setattr(demo, "draw_page", fail)
    for folder in (tmp_path / "new", tmp_path / "before"):
        assert main(["demo", "--output", str(folder)]) == code
    assert names(tmp_path) == {"before"} and names(tmp_path / "before") == {"index.html", "rain.wav"}
    assert (tmp_path / "before" / "rain.wav").read_text() == "old"
