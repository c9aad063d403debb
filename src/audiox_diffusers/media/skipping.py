"""Decoding of wanted frames only: a decoder can skip frames that no other frame refers to."""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from math import ceil

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from .timeline import origin

# Decoders that skip such frames without a change to the others, in containers whose timestamps are those of the frames.
CODECS = {"h264", "hevc"}
FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}

# Packets to look ahead for the frame that follows on screen. Codecs reorder frames by at most 16.
AHEAD = 20


class WantedTimes:
    """
    Moments `first + k * period` of a timeline, in seconds, for whole `k` from 0 and each of `periods`.
    """

    def __init__(self, first: Fraction, periods: Sequence[Fraction]):
        self.first = first
        self.periods = periods

    def any_in(self, begin: Fraction, end: Fraction) -> bool:
        """Tell whether a moment lies at `begin` or later, and before `end`."""
        return any(self.first + max(0, ceil((begin - self.first) / period)) * period < end for period in self.periods)


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
    ahead = deque(islice(packets, AHEAD))
    behind = deque(maxlen=AHEAD)
    while ahead:
        packet = ahead.popleft()
        following = min(
            (other.pts for other in (*behind, *ahead) if other.pts is not None and other.pts > (packet.pts or 0)),
            default=None,
        )
        skip = False
        if packet.pts is not None and following is not None and not packet.is_keyframe:
            begin, end = (stamp * stream.time_base - zero - slack for stamp in (packet.pts, following))
            skip = not wanted.any_in(begin, end)
        context.skip_frame = "NONREF" if skip else "DEFAULT"
        yield packet
        behind.append(packet)
        ahead.extend(islice(packets, 1))
