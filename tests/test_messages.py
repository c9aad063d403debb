import pytest

from audiox_diffusers.messages import first_line, one_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("  wrote a  b.wav\n", "wrote a  b.wav"),
        ("first\n\n   second\r\nthird\u2028fourth\x85fifth", "first second third fourth fifth"),
        ("a\tb", "a b"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("gpj\u202egnp.\u2066a\ufeff", r"gpj\u202egnp.\u2066a\ufeff"),
        ("half \ud83d of an emoji, latin \udce9", r"half \ud83d of an emoji, latin \udce9"),
        ("👩\u200d🚀 naïve 鳥 \xa0", "👩\u200d🚀 naïve 鳥"),
        (KeyError(), "KeyError"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
    ],
)
def test_one_line(message, expected):
    assert one_line(message) == expected


def test_first_line():
    assert first_line(RuntimeError("\n  shapes differ\x1b[0m\nsee the documentation")) == r"shapes differ\x1b[0m"
    assert first_line(RuntimeError(" \n")) == "RuntimeError"
