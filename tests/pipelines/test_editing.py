"""The arithmetic of edits, in samples and latent frames."""

import pytest
import torch

from audiox_diffusers.pipelines.editing import (
    crossfade,
    edit_regions,
    extend_after,
    extend_before,
    frame_strengths,
    mirrored,
    sample_spans,
)

HOP, WINDOW, OVERLAP = 8, 24, 12


def test_spans_in_samples():
    spans = [(0.5, 0.6), (0.1, 0.2), (0.15, 0.3), (0.3, 0.3), (0.9, 1.0004), (0.3, 0.4)]
    assert sample_spans(spans, 1000, 1000) == [(100, 400), (500, 600), (900, 1000)]


def test_crossfade_gain():
    gain = crossfade([(4, 6), (13, 14)], 0, 20, 3)
    expected = [0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    torch.testing.assert_close(gain, torch.tensor(expected))
    assert torch.equal(crossfade([(4, 6), (13, 14)], 5, 12, 3), gain[5:12])
    assert torch.equal(crossfade([(4, 6)], 0, 8, 0), torch.tensor([0.0, 0, 0, 0, 1, 1, 0, 0]))


def test_frames_take_the_strength_of_their_strongest_sample():
    strengths = torch.zeros(1, 22)
    strengths[0, 7] = 0.5
    strengths[0, 16:18] = 0.75
    assert frame_strengths(strengths, 22, 5, 8).tolist() == [[0.5, 0, 0.75, 0.75, 0.75]]


def test_regions():
    edited = torch.zeros(100, dtype=torch.bool)
    edited[[3, 50, 70, 71]] = True
    assert edit_regions(edited, 5, 20) == [(0, 20), (41, 81)]
    assert edit_regions(edited, 1, 4) == [(2, 6), (49, 53), (69, 73)]
    assert edit_regions(torch.ones(24, dtype=torch.bool), 5, 24) == [(0, 24)]


def test_mirrored():
    sound = torch.arange(4)
    assert mirrored(sound, -3, 7).tolist() == [2, 1, 0, 0, 1, 2, 3, 3, 2, 1]
    assert mirrored(torch.arange(2), -3, 5).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def test_extension_after():
    """100 samples end with frame 13, so the sound starts 4 samples into the first frame."""
    grid = extend_after(100, 150, HOP, WINDOW, OVERLAP)
    assert grid.input == (4, 104) and grid.result == (4, 254)
    assert grid.num_frames == 32 and grid.new == (104, 256)
    assert grid.starts == [1, 8]
    assert grid.known_frames(HOP).nonzero().flatten().tolist() == list(range(13))


def test_extension_before():
    """150 samples take 19 frames, of which the first 2 samples are cut off."""
    grid = extend_before(100, 150, HOP, WINDOW, OVERLAP)
    assert grid.input == (152, 252) and grid.result == (2, 252)
    assert grid.num_frames == 32 and grid.new == (0, 152)
    assert grid.starts == [7, 0]
    assert grid.known_frames(HOP).nonzero().flatten().tolist() == list(range(19, 32))


@pytest.mark.parametrize("extend", [extend_after, extend_before])
@pytest.mark.parametrize("overlap", [1, 12, 23])
@pytest.mark.parametrize(("length", "num_new"), [(1, 1), (5, 700), (192, 8), (500, 1), (499, 1000)])
def test_every_window_of_an_extension_overlaps_with_what_is_known(extend, length, num_new, overlap):
    grid = extend(length, num_new, HOP, WINDOW, overlap)
    assert grid.input[1] - grid.input[0] == length
    assert grid.result[1] - grid.result[0] == length + num_new
    assert grid.new[0] <= grid.result[0] < HOP or extend is extend_after
    known = grid.known_frames(HOP)
    for start in grid.starts:
        frames = known[start : start + WINDOW]
        assert len(frames) == WINDOW
        assert not frames.all()
        assert frames.sum() >= min(overlap, known.sum())
        known[start : start + WINDOW] = True
    assert known[: -(-grid.result[1] // HOP)].all()
