"""Mixed precision of a run."""

import torch
from accelerate import Accelerator


def half_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """Return the dtype of mixed precision, `None` without."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
