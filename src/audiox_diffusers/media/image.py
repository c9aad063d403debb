"""Reading of images."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps

from .files import MediaBytes, MediaError, check_source


def load_image(path: str | os.PathLike | MediaBytes) -> torch.Tensor:
    """
    Read an image.

    The EXIF orientation is applied, an animated image gives its first frame, transparency is composited over black,
    and 16-bit greys are scaled down to 8 bits.

    Args:
        path: Any image file Pillow can read, or its bytes.

    Returns:
        `torch.Tensor` of shape `[3, height, width]`, uint8 RGB.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file; it is a folder.
        MediaError: The file is empty, not an image, or damaged.
    """
    check_source(path)
    try:
        with Image.open(path.open() if isinstance(path, MediaBytes) else path) as image:
            image.seek(0)
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else f"cannot be decoded ({error})"
        raise MediaError(f"{path}: {reason}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")
