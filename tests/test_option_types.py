import argparse

import pytest
from helpers import refused

from audiox_diffusers.option_types import MAX_SEED, guidance, guider, guider_arguments, interval, real, span, whole

ERROR = argparse.ArgumentTypeError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (whole(1, 10), "10", 10),
        (whole(0, MAX_SEED), "18446744073709551615", MAX_SEED),
        (real(0, 1), "0", 0.0),
        (real(-5, 5, nonzero=True), "-2.5", -2.5),
        (real(0, 1, above=True), "1e-3", 0.001),
        (span, "2.5-7.5", (2.5, 7.5)),
        (span, "0-1", (0.0, 1.0)),
        (interval, "0.2-0.8", (0.2, 0.8)),
        (guidance(-9, 9), "7", 7.0),
        (guidance(-9, 9), "text=3,video=-7.5", {"text": 3.0, "video": -7.5}),
        (guidance(-9, 9), "audio=0", {"audio": 0.0}),
        (guider, "apg:eta=0.5, norm=2", "apg:eta=0.5, norm=2"),
        (guider_arguments, "cfg-zero-star:zero_steps=2", ("ClassifierFreeZeroStarGuidance", {"zero_init_steps": 2})),
    ],
)
def test_values(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (whole(1, 10), ["0", "11", "1.5", "1e9", "nan", "", "x", "9" * 5000]),
        (real(0, 1), ["-0.1", "1.1", "nan", "inf", "-inf", "1e999", "", "x", "9" * 5000]),
        (real(0, 1, above=True), ["0", "-0.0", "1e-999"]),
        (real(-5, 5, nonzero=True), ["0", "-0", "5.1", "nan"]),
        (interval, ["0.5", "0.8-0.2", "0-1.1", "nan-1", ""]),
        (guidance(-9, 9), ["text", "text=", "text=10", "smell=3", "text=3,text=4", "text=3,", "=3", "nan", ""]),
        (guider, ["", "APG", "apg:", "apg:eta", "apg:eta=x", "apg:eta=nan", "apg:eta=1,eta=2", "apg:zero_steps=1"]),
        (guider, ["cfg-zero-star:zero_steps=0.5", "cfg-zero-star:zero_steps=-1", "apg:eta=0;norm=1", "apg eta=1"]),
        (span, ["3", "3-2", "2-2", "-1-2", "1-nan", "1-inf", "1e3-2e3", "1-2-3", f"0-{'9' * 400}"]),
    ],
)
def test_values_that_are_refused(parse, texts):
    for text in texts:
        with refused("must be ", ", got ", error=ERROR) as error:
            parse(text)
        assert len(error.message) < 200


def test_messages():
    with refused("must be a whole number from 0 to 2**64 - 1, got '-1'", error=ERROR):
        whole(0, MAX_SEED)("-1")
    with refused("must be a number above 0 and at most 1, got '0'", error=ERROR):
        real(0, 1, above=True)("0")
    with refused("must be a number from -5 to 5 other than 0, got '0'", error=ERROR):
        real(-5, 5, nonzero=True)("0")
