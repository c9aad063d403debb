import json

import numpy as np
import pytest
from helpers import BAD_VALUES, refused

from audiox_diffusers.media import save_audio
from audiox_diffusers.pipelines.requests import (
    MAX_LENGTH,
    check_request,
    check_request_files,
    check_request_paths,
)

HUGE = json.loads("9" * 400)


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": ""},
        {"prompt": "a 👩‍🚀", "negative_prompt": None, "video": None},
        {"video": "a.mp4", "audio": "b.wav", "seed": 2**64 - 1, "length": MAX_LENGTH},
        {"image": "a.png", "seed": 0, "length": 1e-3},
    ],
)
def test_requests_that_are_fine(request_):
    check_request(request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "give at least one of prompt, video, image and audio"),
        ({"prompt": None, "negative_prompt": "music", "seed": 1}, "give at least one of"),
        ({"video": "a.mp4", "image": "a.png"}, "not both"),
        ({"prompt": "a", "seed": -1}, "seed must be in 0..2**64 - 1, got -1"),
        ({"prompt": "a", "seed": 2**64}, "seed must be in"),
        ({"prompt": "a", "seed": HUGE}, "(400 characters)"),
        ({"prompt": "a", "length": 0}, "length must be above 0 and at most 86400 seconds, got 0"),
        ({"prompt": "a", "length": MAX_LENGTH + 1}, "length must be"),
        ({"prompt": "a", "length": HUGE}, "length must be"),
        *(({"prompt": "a", "length": value}, "length must be") for value in BAD_VALUES),
        ({"prompt": "rain \ud83d"}, r"prompt is not valid text: '\ud83d' at character 6"),
        ({"prompt": "caf\udce9"}, r"'\udce9' at character 4"),
        ({"prompt": "a", "negative_prompt": "\udfff"}, "negative_prompt is not valid text"),
    ],
)
def test_requests_that_are_refused(request_, message):
    with refused(message):
        check_request(request_)


def test_files_are_read_and_paths_are_only_looked_up(tmp_path):
    save_audio(tmp_path / "good.wav", np.zeros(800), 16000)
    (tmp_path / "bad.wav").write_text("no audio")
    for name in ("good", "bad"):
        check_request_paths({"prompt": "a", "audio": tmp_path / f"{name}.wav"})
    check_request_files({"audio": tmp_path / "good.wav"})
    with refused("bad.wav", error=ValueError):
        check_request_files({"audio": tmp_path / "bad.wav"})
    with refused("nothing.mp4: no such file", error=FileNotFoundError):
        check_request_paths({"video": tmp_path / "nothing.mp4"})
