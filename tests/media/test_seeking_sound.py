"""Sound that is read from the middle of a file."""

import av
import numpy as np
import pytest
from helpers import assert_equal

from audiox_diffusers.media import audio, load_audio

RATE = 16000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """
    Ten seconds of a rising tone with pauses, in formats that are sought and formats that are not.

    AAC comes without noise substitution, for which decoders draw random numbers.
    """
    folder = tmp_path_factory.mktemp("sounds")
    time = np.arange(10 * RATE) / RATE
    sound = (0.5 * np.sin(2 * np.pi * (200 + 150 * time) * time) * (np.sin(5 * time) > -0.5))[None].astype(np.float32)
    for name, codec in {
        "a.wav": "pcm_s16le",
        "a.caf": "pcm_s16le",
        "a.aiff": "pcm_s16be",
        "a.flac": "flac",
        "a.m4a": "aac",
        "b.m4a": "alac",
        "a.mkv": "aac",
        "a.mp3": "libmp3lame",
    }.items():
        with av.open(str(folder / name), "w") as target:
            options = {"aac_pns": "0"} if codec == "aac" else {}
            stream = target.add_stream(codec, rate=RATE, layout="mono", options=options)
            for first in range(0, sound.shape[1], 4000):
                frame = av.AudioFrame.from_ndarray(sound[:, first : first + 4000].copy(), format="flt", layout="mono")
                frame.sample_rate, frame.pts = RATE, first
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    return folder


@pytest.mark.parametrize("name", ["a.wav", "a.caf", "a.aiff", "a.flac", "a.m4a", "b.m4a", "a.mkv", "a.mp3"])
def test_samples_are_those_of_decoding_from_the_start(sounds, monkeypatch, name):
    starts = [2.5, 3.00003, 7.1234567, 9.99]
    sought = [load_audio(sounds / name, start=start, duration=1.5)[0] for start in starts]
    monkeypatch.setattr(audio, "_seek", lambda *_: None)
    for start, waveform in zip(starts, sought, strict=True):
        assert_equal(waveform, load_audio(sounds / name, start=start, duration=1.5)[0])


@pytest.mark.parametrize("name", ["a.wav", "a.caf", "a.aiff", "a.flac", "a.m4a", "b.m4a"])
def test_a_late_start_decodes_little(sounds, monkeypatch, name):
    decoded, placed = [], audio._placed

    def count(*args):
        for position, frame in placed(*args):
            decoded.append(frame.samples)
            yield position, frame

    monkeypatch.setattr(audio, "_placed", count)
    load_audio(sounds / name, start=9.0, duration=0.5)
    assert sum(decoded) < 2.5 * RATE
