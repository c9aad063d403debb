"""Pictures of sounds."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .audio import load_audio
from .spectrogram import spectrogram_picture

WAVEFORM_HEIGHT = 96
BACKGROUND, FOREGROUND = (0, 0, 0), (251, 180, 92)


def sound_picture(path: Path) -> Image.Image:
    """Return the waveform of a sound file over its log-mel spectrogram, both from left to right."""
    waveform, rate = load_audio(path)
    spectrogram = spectrogram_picture(waveform, rate)
    picture = Image.new("RGB", (spectrogram.width, WAVEFORM_HEIGHT + spectrogram.height), BACKGROUND)
    picture.paste(Image.fromarray(_draw_waveform(waveform, spectrogram.width)), (0, 0))
    picture.paste(spectrogram, (0, WAVEFORM_HEIGHT))
    return picture


def _draw_waveform(waveform: torch.Tensor, width: int) -> np.ndarray:
    """Return RGB pixels `[WAVEFORM_HEIGHT, width, 3]` with a bar from the lowest to the highest sample of each column."""
    columns = np.array_split(waveform.numpy().clip(-1, 1), min(width, waveform.shape[1]), axis=1)
    spans = np.array([(column.min(), column.max()) for column in columns])
    spans = spans[np.arange(width) * len(spans) // width]
    # Row 0 is the top. The middle row is always drawn.
    rows = np.arange(WAVEFORM_HEIGHT)[:, None]
    top, bottom = ((1 - spans[:, (1, 0)]) / 2 * (WAVEFORM_HEIGHT - 1)).round().T
    drawn = (rows >= np.minimum(top, WAVEFORM_HEIGHT // 2)) & (rows <= np.maximum(bottom, WAVEFORM_HEIGHT // 2))
    return np.where(drawn[..., None], FOREGROUND, BACKGROUND).astype(np.uint8)
