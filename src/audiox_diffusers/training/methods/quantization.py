"""The base model's transformer in fewer bits, while an adapter is trained beside it."""

import argparse

import torch
from diffusers import PipelineQuantizationConfig
from diffusers.utils import is_bitsandbytes_available, is_torchao_available

# The package that each needs, and whether it is there.
QUANTIZATIONS = {
    "bnb_8bit": ("bitsandbytes", is_bitsandbytes_available),
    "bnb_4bit": ("bitsandbytes", is_bitsandbytes_available),
    "torchao_int8": ("torchao", is_torchao_available),
}


def check_quantization(args: argparse.Namespace) -> None:
    """`ValueError` if `--quantization` cannot be had here."""
    if args.quantization is None:
        return
    package, is_available = QUANTIZATIONS[args.quantization]
    if not is_available():
        raise ValueError(
            f"--quantization {args.quantization} needs {package}: pip install 'audiox-diffusers[quantization]'"
        )
    # diffusers loads with bitsandbytes on a GPU alone.
    if package == "bitsandbytes" and not torch.cuda.is_available():
        raise ValueError(f"--quantization {args.quantization} needs a GPU")


def quantization_config(name: str, compute_dtype: torch.dtype) -> PipelineQuantizationConfig:
    """
    For `from_pretrained`: the linear layers of the transformer quantized.

    Args:
        name: one of `QUANTIZATIONS`.
        compute_dtype: what products are computed in.
    """
    if name == "torchao_int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        from diffusers import BitsAndBytesConfig

        bits = {"load_in_8bit": True}
        if name == "bnb_4bit":
            # As in QLoRA (arXiv 2305.14314).
            bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute_dtype}
        config = BitsAndBytesConfig(**bits)
    return PipelineQuantizationConfig(quant_mapping={"transformer": config})
