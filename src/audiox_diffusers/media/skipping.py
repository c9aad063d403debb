"""Decoding of wanted frames only: a decoder can skip frames that no other frame refers to."""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from math import lcm
from typing import NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from .timeline import origin

# Decoders that skip such frames without a change to the others, in containers whose timestamps are those of the frames.
CODECS = {"h264", "hevc"}
FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}

# Packets to look ahead for the frame that follows on screen. Codecs reorder frames by at most 16.
AHEAD = 20


class WantedTimes(NamedTuple):
    """Moments `first + k * period` of a timeline, in seconds, for whole `k` from 0 and each of `periods`."""

    first: Fraction
    periods: Sequence[Fraction]

    def in_ticks(self, time_base: Fraction, zero: Fraction) -> "WantedTicks":
        """Return the timestamps of the moments, in units of `time_base`. Moment 0 has a timestamp of `zero` seconds."""
        exact = [(self.first + zero) / time_base, *(period / time_base for period in self.periods)]
        unit = lcm(*(value.denominator for value in exact))
        first, *periods = (value.numerator * (unit // value.denominator) for value in exact)
        return WantedTicks(unit, first, periods)


class WantedTicks(NamedTuple):
    """[`WantedTimes`] as whole numbers, because fractions are slow. There are `unit` of them to a tick."""

    unit: int
    first: int
    periods: list[int]

    def any_in(self, begin: int, end: int) -> bool:
        """Tell whether a moment lies at the timestamp `begin` or later, and before `end`."""
        begin, end = begin * self.unit, end * self.unit
        return any(self.first + max(0, -((self.first - begin) // period)) * period < end for period in self.periods)


def skip_unwanted(
    packets: Iterator[av.Packet],
    container: InputContainer,
    stream: VideoStream,
    wanted: WantedTimes,
    slack: Fraction,
) -> Iterator[av.Packet]:
    """
    Yield the packets of a video, with the decoder set to skip frames that are on screen at no wanted moment.

    The other frames stay the same to the bit, because the decoder skips only frames without dependents.

    Args:
        packets: Packets in the order of decoding.
        container, stream: Where they come from.
        wanted: Moments at which frames are wanted.
        slack: Seconds by which frames count as earlier than their timestamps.
    """
    zero, context = origin(container), stream.codec_context
    if zero is None or context.name not in CODECS or container.format.name not in FORMATS:
        yield from packets
        return
    ticks = wanted.in_ticks(stream.time_base, zero + slack)
    ahead = deque((packet.pts, packet) for packet in islice(packets, AHEAD))
    behind = deque(maxlen=AHEAD)
    while ahead:
        begin, packet = ahead.popleft()
        skip = False
        if begin is not None and not packet.is_keyframe:
            later = [pts for pts in (*behind, *(pts for pts, _ in ahead)) if pts is not None and pts > begin]
            skip = bool(later) and not ticks.any_in(begin, min(later))
        context.skip_frame = "NONREF" if skip else "DEFAULT"
        yield packet
        behind.append(begin)
        ahead.extend((packet.pts, packet) for packet in islice(packets, 1))
