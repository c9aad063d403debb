"""Small samples of every media format that can be written here: half a second of a tone, and of a moving picture."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

RATE, FPS, SECONDS = 48000, 25, 0.5
HEIGHT, WIDTH = 48, 64

# extension: (muxer, encoder)
SOUNDS = {
    ".aac": ("adts", "aac"),
    ".ac3": ("ac3", "ac3"),
    ".aiff": ("aiff", "pcm_s16be"),
    ".au": ("au", "pcm_s16be"),
    ".caf": ("caf", "pcm_s16le"),
    ".eac3": ("eac3", "eac3"),
    ".flac": ("flac", "flac"),
    ".m4a": ("ipod", "aac"),
    ".mp2": ("mp2", "mp2"),
    ".mp3": ("mp3", "libmp3lame"),
    ".oga": ("ogg", "flac"),
    ".opus": ("opus", "libopus"),
    ".tta": ("tta", "tta"),
    ".voc": ("voc", "pcm_u8"),
    ".w64": ("w64", "pcm_s16le"),
    ".wav": ("wav", "pcm_s16le"),
    ".wma": ("asf", "wmav2"),
    ".wv": ("wv", "wavpack"),
}
# extension: (muxer, encoder of the picture, encoder of the sound)
VIDEOS = {
    ".avi": ("avi", "mpeg4", "libmp3lame"),
    ".flv": ("flv", "libx264", "aac"),
    ".h264": ("h264", "libx264", None),
    ".hevc": ("hevc", "libx265", None),
    ".ivf": ("ivf", "libvpx", None),
    ".m4v": ("m4v", "mpeg4", None),
    ".mjpeg": ("mjpeg", "mjpeg", None),
    ".mkv": ("matroska", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mp4": ("mp4", "libx264", "aac"),
    ".mpg": ("mpeg", "mpeg2video", "mp2"),
    ".mxf": ("mxf", "mpeg2video", "pcm_s16le"),
    ".nut": ("nut", "mpeg4", "mp2"),
    ".obu": ("obu", "libsvtav1", None),
    ".ts": ("mpegts", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
    ".wmv": ("asf", "wmv2", "wmav2"),
    ".y4m": ("yuv4mpegpipe", "rawvideo", None),
}
PICTURES = (".avif", ".bmp", ".gif", ".jp2", ".jpg", ".png", ".ppm", ".qoi", ".tiff", ".webp")


def write_sample(path: Path) -> Path:
    """Write the sample that belongs to the extension."""
    if path.suffix in PICTURES:
        _write_picture(path)
    elif path.suffix in SOUNDS:
        muxer, codec = SOUNDS[path.suffix]
        with av.open(str(path), "w", format=muxer) as target:
            _mux_sound(target, _add_sound(target, codec))
    else:
        muxer, picture, sound = VIDEOS[path.suffix]
        with av.open(str(path), "w", format=muxer) as target:
            stream = target.add_stream(picture, rate=FPS)
            stream.width, stream.height, stream.pix_fmt = (
                WIDTH,
                HEIGHT,
                "yuvj420p" if picture == "mjpeg" else "yuv420p",
            )
            track = None if sound is None else _add_sound(target, sound)
            for index in range(round(SECONDS * FPS)):
                frame = av.VideoFrame.from_ndarray(_frame(index), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
            if track is not None:
                _mux_sound(target, track)
    return path


def _frame(index: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.stack([(x * 4 + index * 8) % 256, (y * 5) % 256, (x + y + index) % 256], axis=-1).astype(np.uint8)


def _write_picture(path: Path) -> None:
    first, *others = (Image.fromarray(_frame(index)) for index in range(5))
    if path.suffix in (".gif", ".webp"):
        first.save(path, save_all=True, append_images=others, duration=100)
    else:
        first.save(path)


def _add_sound(target: av.container.OutputContainer, codec: str) -> av.AudioStream:
    stream = target.add_stream(codec, rate=RATE, layout="stereo")
    if not codec.startswith("pcm_"):
        stream.bit_rate = 128_000
    return stream


def _mux_sound(target: av.container.OutputContainer, stream: av.AudioStream) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 / RATE * np.arange(round(SECONDS * RATE)))
    sound = np.repeat(tone.astype(np.float32)[None], 2, axis=1)  # interleaved
    frame = av.AudioFrame.from_ndarray(sound, format="flt", layout="stereo")
    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
    target.mux(stream.encode(frame))
    target.mux(stream.encode(None))
