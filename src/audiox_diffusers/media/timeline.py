"""The timeline of a file: one zero for all of its streams, as players show them."""

from collections.abc import Iterator
from fractions import Fraction

from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.frame import Frame
from av.stream import Stream

from .containers import Choose, decode, picture_streams
from .files import MediaSource

# FFmpeg's flag of formats whose clock may restart midway, as in joined MPEG-TS files.
_TS_DISCONT = 0x0200

# Smallest jumps in seconds, back and ahead, that are taken for a restart of the clock.
_RESTART_BACK, _RESTART_AHEAD = Fraction(1, 20), 10


def origin(container: InputContainer) -> Fraction | None:
    """
    Return the zero of the timeline, in seconds on the file's own clock.

    It is the start of the stream that starts first; cover pictures do not count. `None` if the file does not say.
    """
    streams = [*container.streams.audio, *picture_streams(container)]
    starts = [stream.start_time * stream.time_base for stream in streams if stream.start_time is not None]
    return min(starts, default=None)


def start_of(container: InputContainer, stream: Stream) -> Fraction | None:
    """Return the start of a stream on the timeline, in seconds; `None` if the file does not say."""
    return None if stream.start_time is None else stream.start_time * stream.time_base - origin(container)


def timed(
    container: InputContainer,
    stream: Stream,
    source: MediaSource,
    choose: Choose | None = None,
    zero: Fraction | None = None,
) -> Iterator[tuple[Fraction, Fraction, Frame]]:
    """
    Decode a stream from the container's position.

    Args:
        container, stream, source, choose: Arguments of [`decode`].
        zero: Zero of the timeline, in seconds on the file's own clock. Defaults to [`origin`], or else to the first
            frame.

    Yields:
        `(time, duration, frame)`: start and duration in seconds on the timeline. A frame without a timestamp follows
        the one before, and so does the first frame after the file's clock restarts.
    """
    zero = origin(container) if zero is None else zero
    time_base = stream.time_base
    previous, following = None, Fraction(0)
    restartable = bool(container.format.flags & _TS_DISCONT)
    stamps = _Stamps()
    for frame in decode(container, stream, source, choose):
        stamp, time = stamps.of(frame), following
        if stamp is not None:
            if zero is None:
                zero = stamp * time_base
            time = stamp * time_base - zero
            back = previous is not None and time < previous - _RESTART_BACK
            ahead = previous is not None and restartable and time > following + _RESTART_AHEAD
            if back or ahead:
                zero += time - following
                time = following
        duration = _duration(frame, stream, time_base)
        previous, following = time, time + duration
        yield time, duration, frame


class _Stamps:
    """
    Chooses between the two timestamps of decoded frames.

    The presentation time is right unless it goes backwards more often than the decoding time, as in AVI files with
    reordered frames.
    """

    def __init__(self) -> None:
        self._last = {"pts": None, "dts": None}
        self._faults = {"pts": 0, "dts": 0}

    def of(self, frame: Frame) -> int | None:
        for name, last in self._last.items():
            stamp = getattr(frame, name)
            if stamp is not None:
                self._faults[name] += last is not None and stamp <= last
                self._last[name] = stamp
        if frame.pts is None or (frame.dts is not None and self._faults["pts"] > self._faults["dts"]):
            return frame.dts
        return frame.pts


def _duration(frame: Frame, stream: Stream, time_base: Fraction) -> Fraction:
    if isinstance(frame, AudioFrame):
        return Fraction(frame.samples, frame.sample_rate)
    if frame.duration:
        return frame.duration * time_base
    return 1 / (stream.average_rate or Fraction(25))
