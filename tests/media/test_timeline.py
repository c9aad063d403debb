"""All streams of a file keep their places on one timeline: in reading, windows, writing and durations."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from audiox_diffusers.media import load_audio, load_video, media_duration, save_video

FPS, RATE = 25, 48000
SECONDS = 4


def write_clip(path, picture_start=0.0, sound_start=0.0, sound_gap=None, picture_gap=None, codec="aac", shift=0.0):
    """
    Write a clip in which flash and click come together at 1, 2 and 3 s.

    A stream that starts late lacks its beginning: what is left keeps its place. A gap is `(start, end)`. `shift` is
    added to all timestamps.
    """
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        video = target.add_stream("libx264", rate=FPS, options={"g": "5", "bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = target.add_stream(codec, rate=RATE, layout="mono")
        packets = []
        for index in range(SECONDS * FPS):
            if index / FPS >= picture_start and not _within(index / FPS, picture_gap):
                flash = index >= FPS and index % FPS < 3
                frame = av.VideoFrame.from_ndarray(
                    np.full((48, 64, 3), 220 if flash else 60, np.uint8), format="rgb24"
                )
                frame.pts, frame.time_base = index + round(shift * FPS), Fraction(1, FPS)
                packets += video.encode(frame)
        packets += video.encode(None)
        sound = 0.01 * np.sin(np.arange(SECONDS * RATE) / 30)
        for second in range(1, SECONDS):
            sound[second * RATE : second * RATE + 500] = 0.9 * np.sin(np.arange(500) / 4)
        for index in range(0, len(sound), 960):
            if index / RATE >= sound_start:
                frame = av.AudioFrame.from_ndarray(sound[None, index : index + 960].astype(np.float32), "fltp", "mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), index + round(shift * RATE)
                packets += audio.encode(frame)
        packets += audio.encode(None)
        times = [(packet, float(packet.pts * packet.time_base) - shift) for packet in packets]
        kept = [packet for packet, time in times if not (packet.stream is audio and _within(time, sound_gap))]
        for packet in sorted(kept, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)
    return path


def _within(time, gap):
    return gap is not None and gap[0] <= time < gap[1]


def flashes(path, **window):
    frames = load_video(path, fps=100, **{"duration": None, **window})
    return _starts(torch.nonzero(frames.float().mean(dim=(1, 2, 3)) > 140).flatten() / 100)


def clicks(path, **window):
    waveform, rate = load_audio(path, **window)
    return _starts(torch.nonzero(waveform.abs().max(dim=0).values > 0.4).flatten() / rate)


def _starts(times):
    return [time for index, time in enumerate(times.tolist()) if index == 0 or time - times[index - 1] > 0.3]


def near(*times):
    # A frame of 10 ms, and a codec's delay that some containers do not declare.
    return pytest.approx(times, abs=0.035)


SUFFIXES = [".mp4", ".mov", ".mkv", ".ts"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_streams_that_start_together(tmp_path, suffix, shift):
    path = write_clip(tmp_path / f"clip{suffix}", shift=shift)
    assert flashes(path) == near(1, 2, 3) and clicks(path) == near(1, 2, 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_late_picture(tmp_path, suffix, shift):
    path = write_clip(tmp_path / f"clip{suffix}", picture_start=1.6, shift=shift)
    assert flashes(path) == near(2, 3) and clicks(path) == near(1, 2, 3)
    # Black until the picture starts.
    frames = load_video(path, fps=10, duration=2.5).float().mean(dim=(1, 2, 3))
    assert (frames[:15] == 0).all() and (frames[17:] > 50).all()
    assert media_duration(path, "picture") == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_late_sound(tmp_path, suffix):
    path = write_clip(tmp_path / f"clip{suffix}", sound_start=1.5)
    assert flashes(path) == near(1, 2, 3) and clicks(path) == near(2, 3)
    assert not load_audio(path, duration=1.4)[0].any()
    assert media_duration(path) == pytest.approx(4, abs=0.1 if suffix != ".ts" else 0.3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "ac3"])
def test_gap_in_the_sound(tmp_path, suffix, codec):
    path = write_clip(tmp_path / f"clip{suffix}", sound_gap=(1.4, 1.9), codec=codec)
    assert clicks(path) == near(1, 2, 3) and flashes(path) == near(1, 2, 3)
    assert not load_audio(path, start=1.5, duration=0.3)[0].any()


def test_gap_in_the_picture_holds_the_last_frame(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", picture_gap=(1.08, 1.88))
    levels = load_video(path, fps=25, duration=None).float().mean(dim=(1, 2, 3))
    assert len(levels) == SECONDS * FPS and (levels[25:47] > 140).all() and (levels[48:50] < 100).all()
    assert clicks(path) == near(1, 2, 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("late", [{"picture_start": 1.6}, {"sound_start": 1.6}, {"sound_gap": (1.4, 1.9)}])
def test_windows_are_parts_of_the_whole(tmp_path, suffix, late):
    path = write_clip(tmp_path / f"clip{suffix}", **late)
    sound, rate = load_audio(path)
    frames = load_video(path, fps=20, duration=None)
    for start, duration in [(0.0, 0.5), (0.5, 1.5), (1.0, 1.0), (1.45, 0.4), (1.9, 1.0), (2.5, 1.0)]:
        part, _ = load_audio(path, start=start, duration=duration)
        first = round(start * rate)
        assert torch.equal(part, sound[:, first : first + round(duration * rate)])
        picked = load_video(path, fps=20, start=start, duration=duration)
        assert torch.equal(picked, frames[round(start * 20) :][: round(duration * 20)])


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("late", [{"picture_start": 1.6}, {"sound_start": 1.6}, {"shift": 2.0}])
def test_new_sound_fits_the_copied_picture(tmp_path, source, target, late):
    path = write_clip(tmp_path / f"clip{source}", **late)
    sound, rate = load_audio(path)
    save_video(tmp_path / f"new{target}", path, sound, rate)
    for find in (flashes, clicks):
        assert find(tmp_path / f"new{target}") == pytest.approx(find(path), abs=0.025)


def test_hidden_frames_of_an_edit_list_do_not_count(tmp_path):
    """The muxer hides what lies before 0, of the picture and of the sound."""
    path = write_clip(tmp_path / "clip.mp4", shift=-1.4)
    assert flashes(path) == near(0.6, 1.6) and clicks(path) == near(0.6, 1.6)


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "libopus"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_encoder_delay_moves_nothing(tmp_path, suffix, codec):
    path = write_clip(tmp_path / f"clip{suffix}", codec=codec)
    difference = np.array(clicks(path)) - np.array(flashes(path))
    assert np.abs(difference).max() < 0.025


def test_clock_that_restarts(tmp_path):
    """Joined MPEG-TS files: the second one follows the first, in picture and sound."""
    content = write_clip(tmp_path / "clip.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(content + content)
    assert clicks(tmp_path / "joined.ts") == pytest.approx([1, 2, 3, 5, 6, 7], abs=0.15)
    apart = np.array(clicks(tmp_path / "joined.ts")) - np.array(flashes(tmp_path / "joined.ts"))
    assert np.abs(apart).max() < 0.1


def test_picture_that_ends_before_the_sound(tmp_path):
    frames = np.zeros((2 * FPS, 48, 64, 3), np.uint8)
    save_video(tmp_path / "clip.mp4", frames, torch.zeros(1, 7 * RATE // 2), RATE, fps=FPS)
    assert media_duration(tmp_path / "clip.mp4", "picture") == 2
    assert media_duration(tmp_path / "clip.mp4", "sound") == media_duration(tmp_path / "clip.mp4") == 3.5
    with pytest.raises(ValueError, match="kind"):
        media_duration(tmp_path / "clip.mp4", "both")


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".flac", ".m4a", ".opus"])
def test_sound_alone_starts_at_its_first_sample(tmp_path, suffix):
    from audiox_diffusers.media import save_audio

    sound = torch.zeros(1, RATE)
    sound[:, 4800:5300] = 0.9 * torch.sin(torch.arange(500) / 4)
    save_audio(tmp_path / f"sound{suffix}", sound, RATE)
    waveform, rate = load_audio(tmp_path / f"sound{suffix}")
    assert torch.nonzero(waveform[0].abs() > 0.4)[0].item() == pytest.approx(4800, abs=100)
