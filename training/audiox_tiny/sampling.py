"""Sounds for captions, which the measuring scripts share."""

import numpy as np
import torch

from audiox_diffusers import AudioXPipeline


def generate(pipe: AudioXPipeline, captions: list[str], seconds: float, batch_size: int) -> list[np.ndarray]:
    """Generate a sound `[channels, samples]` for each caption. Its seed is the index of the caption."""
    pipe.set_progress_bar_config(disable=True)
    sounds = []
    for first in range(0, len(captions), batch_size):
        batch = captions[first : first + batch_size]
        generators = [torch.Generator().manual_seed(first + index) for index in range(len(batch))]
        sounds += list(pipe(batch, audio_length_in_s=seconds, generator=generators).audios)
    return sounds
