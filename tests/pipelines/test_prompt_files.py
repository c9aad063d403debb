import json
from pathlib import Path

import pytest

from audiox_diffusers.pipelines.prompt_files import read_prompt_file


@pytest.fixture
def write(tmp_path):
    """Return a function that writes lines to a file. Values other than strings are written as JSON."""

    def write(*lines: object, newline: str = "\n", encoding: str = "utf-8") -> Path:
        path = tmp_path / "prompts.jsonl"
        lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_bytes(newline.join(lines).encode(encoding))
        return path

    return write


def test_every_key(write, tmp_path):
    request = {"prompt": "rain", "negative_prompt": "wind", "seed": 3, "length": 1.5}
    path = write({**request, "video": "clips/a.mp4", "image": "/b.png", "audio": "../c.wav"})
    files = {"video": tmp_path / "clips" / "a.mp4", "image": Path("/b.png"), "audio": tmp_path / ".." / "c.wav"}
    assert read_prompt_file(path) == {1: {**request, **files}}


def test_line_numbers_count_blank_lines(write):
    path = write("", {"prompt": "a"}, "  \t", {"prompt": "b", "length": 2}, "")
    assert read_prompt_file(path) == {2: {"prompt": "a"}, 4: {"prompt": "b", "length": 2}}


@pytest.mark.parametrize("options", [{"newline": "\r\n"}, {"encoding": "utf-8-sig"}])
def test_files_of_other_systems(write, options):
    path = write({"prompt": "a"}, '{"prompt": "Vögel, \u2028鳥"}', **options)
    assert read_prompt_file(path) == {1: {"prompt": "a"}, 2: {"prompt": "Vögel, \u2028鳥"}}


def test_more_keys(write):
    path = write({"prompt": "a", "output": "a.wav"})
    assert read_prompt_file(path, output=str) == {1: {"prompt": "a", "output": "a.wav"}}
    with pytest.raises(ValueError, match="line 1: unknown key 'output', use prompt, .*length$"):
        read_prompt_file(path)
    with pytest.raises(ValueError, match='line 1: output is of the wrong type: "a.wav"'):
        read_prompt_file(path, output=int)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'prompt': 'a'}", r"not JSON \(Expecting property name"),
        ('{"prompt": "a"', r"not JSON \(Expecting ',' delimiter"),
        ("[1]", "must be a JSON object, got list"),
        ('"rain"', "must be a JSON object, got str"),
        ("null", "must be a JSON object, got NoneType"),
        ({"promt": "a"}, "unknown key 'promt', use prompt, negative_prompt, video, image, audio, seed, length"),
        ({"prompt": 3}, "prompt is of the wrong type: 3"),
        ({"prompt": None}, "prompt is of the wrong type: null"),
        ({"prompt": ["a"]}, r'prompt is of the wrong type: \["a"\]'),
        ({"video": 1}, "video is of the wrong type: 1"),
        ({"seed": "0"}, 'seed is of the wrong type: "0"'),
        ({"seed": 1.5}, "seed is of the wrong type: 1.5"),
        ({"seed": True}, "seed is of the wrong type: true"),
        ({"length": "2"}, 'length is of the wrong type: "2"'),
        ({"length": False}, "length is of the wrong type: false"),
    ],
)
def test_wrong_lines_are_named(write, line, said):
    with pytest.raises(ValueError, match=f"prompts.jsonl, line 3: {said}"):
        read_prompt_file(write({"prompt": "a"}, "", line, {"prompt": "b"}))


def test_empty_files(write, tmp_path):
    for lines in ([], ["", " "]):
        with pytest.raises(ValueError, match="prompts.jsonl: has no lines"):
            read_prompt_file(write(*lines))
    with pytest.raises(ValueError, match="prompts.jsonl: not UTF-8"):
        read_prompt_file(write({"prompt": "a"}, '{"prompt": "Vögel"}', encoding="latin-1"))
    with pytest.raises(FileNotFoundError, match="missing.jsonl"):
        read_prompt_file(tmp_path / "missing.jsonl")
