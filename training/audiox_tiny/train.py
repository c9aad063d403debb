"""
Train the transformer and the conditioner of audiox-tiny: `training/train_audiox.py` with a frozen position code.
"""

import torch
from positions import freeze_positions

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.training import FullTraining, main


class FrozenPositions(FullTraining):
    """Full training, except for the position code of [`positions.build_in_positions`]."""

    def load_pipeline(self, frozen_dtype: torch.dtype) -> AudioXPipeline:
        pipe = super().load_pipeline(frozen_dtype)
        freeze_positions(pipe.transformer, pipe.conditioner)
        return pipe


if __name__ == "__main__":
    main(method=FrozenPositions)
