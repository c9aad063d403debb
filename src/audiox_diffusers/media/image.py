"""Reading of pictures with Pillow."""

import itertools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import torch
from PIL import Image, ImageOps

from .files import MediaError, MediaSource, check_positive, open_file

logger = logging.getLogger(__name__)

# Pillow's names of the formats that are read. Others may start programs, as EPS starts Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")

# Formats whose frames are an animation; those of others, such as TIFF, are separate pictures.
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")

# Largest picture that is read by default, in pixels.
MAX_IMAGE_PIXELS = 2**27

# Seconds that a still picture lasts as a video.
STILL_DURATION = Fraction(1, 25)

# Like browsers, show frames for 0.1 s if the file asks for less than 0.02 s.
SHORTEST_FRAME, USUAL_FRAME = Fraction(2, 100), Fraction(1, 10)


def load_image(path: MediaSource, max_pixels: int = MAX_IMAGE_PIXELS) -> torch.Tensor:
    """
    Read a picture.

    The EXIF orientation is applied, transparency is composited over black, 16-bit greys are scaled down to 8 bits, and
    an animation gives its first frame.

    Args:
        path (`str`, `os.PathLike` or [`MediaBytes`]): AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, QOI, TIFF or WebP
            file; "-" and pipes work too.
        max_pixels (`int`): Largest width times height. Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, holds too.

    Returns:
        `torch.Tensor`: Shape `[3, height, width]`, uint8 RGB.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: The path is missing, a folder, or not readable.
        MediaError: The file is empty, not a picture of a supported format, damaged, or larger than `max_pixels`.
        ValueError: `max_pixels` is not above 0.
    """
    check_positive("max_pixels", max_pixels)
    with open_image(path, max_pixels) as image, _errors(path):
        image.seek(0)
        return _to_tensor(image)


def image_format(source: MediaSource) -> str | None:
    """Return Pillow's name of a picture's format, or `None` if the file is not a picture of a supported format."""
    with open_file(source) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                return image.format
        except Exception:
            return None


@contextmanager
def open_image(source: MediaSource, max_pixels: int = MAX_IMAGE_PIXELS) -> Iterator[Image.Image]:
    """Open a picture with Pillow; for errors see [`load_image`]."""
    with open_file(source) as file:
        with _errors(source):
            image = Image.open(file, formats=FORMATS)
        with image:
            if math.prod(image.size) > max_pixels:
                raise MediaError(
                    f"{source}: has {image.width}x{image.height} pixels, more than `max_pixels` ({max_pixels})"
                )
            yield image


def animation(image: Image.Image, source: MediaSource) -> Iterator[tuple[Fraction, Fraction, torch.Tensor]]:
    """
    Yield `(time, duration, frame)` of each frame in seconds, as uint8 RGB `[3, height, width]`.

    If a frame after the first cannot be decoded, a warning says so and the animation ends there.
    """
    time = Fraction(0)
    for index in itertools.count():
        try:
            with _errors(source):
                image.seek(index)
                frame = _to_tensor(image)
                moving = image.format in ANIMATED and getattr(image, "is_animated", False)
                duration = _frame_duration(image) if moving else STILL_DURATION
        except MediaError as error:
            if index == 0:
                raise
            if not isinstance(error.__context__, EOFError):
                logger.warning(f"{source}: the animation is damaged; frames from {float(time):.2f} s on are left out.")
            return
        yield time, duration, frame
        if not moving:
            return
        time += duration


def frame_rate(image: Image.Image, source: MediaSource) -> float:
    """Return frames per second that reproduce the timing of an animation, at most 50."""
    ticks = math.gcd(*(round(duration * 1000) for _, duration, _ in animation(image, source)))
    return min(50.0, 1000 / ticks)


def _frame_duration(image: Image.Image) -> Fraction:
    """Return how long the current frame of an animation is shown, in seconds."""
    milliseconds = image.info.get("duration", 0)
    duration = Fraction(round(milliseconds * 1000), 1_000_000) if math.isfinite(milliseconds) else Fraction(0)
    return duration if duration >= SHORTEST_FRAME else USUAL_FRAME


def to_array(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to uint8 RGB `[height, width, 3]`, in the same way as [`load_image`] reads a file."""
    image.load()  # which already rotates a TIFF
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(to_array(image)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _errors(source: MediaSource) -> Iterator[None]:
    """Turn whatever Pillow raises into `MediaError`: damaged files make its decoders raise almost anything."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise MediaError(f"{source}: not a picture of a supported format ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise MediaError(f"{source}: the picture cannot be decoded ({error})") from None
