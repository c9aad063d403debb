"""Quantization of the frozen base model under an adapter."""

import torch
from diffusers import PipelineQuantizationConfig
from diffusers.utils import is_bitsandbytes_available, is_torchao_available

# The package that each quantization needs, and its availability check.
QUANTIZATIONS = {
    "bnb_8bit": ("bitsandbytes", is_bitsandbytes_available),
    "bnb_4bit": ("bitsandbytes", is_bitsandbytes_available),
    "torchao_int8": ("torchao", is_torchao_available),
}


def check_quantization(name: str | None) -> None:
    """Raise `ValueError` if a quantization is not available on this machine."""
    if name is None:
        return
    package, is_available = QUANTIZATIONS[name]
    if not is_available():
        raise ValueError(f"--quantization {name} needs {package}: pip install 'audiox-diffusers[quantization]'")
    # diffusers needs a GPU to load with bitsandbytes.
    if package == "bitsandbytes" and not torch.cuda.is_available():
        raise ValueError(f"--quantization {name} needs a GPU")


def quantization_config(name: str, compute_dtype: torch.dtype) -> PipelineQuantizationConfig:
    """
    Return a `from_pretrained` config that quantizes the linear layers of the transformer.

    Args:
        name: One of `QUANTIZATIONS`.
        compute_dtype: Dtype of matrix products with `"bnb_4bit"`.
    """
    if name == "torchao_int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        from diffusers import BitsAndBytesConfig

        bits = {"load_in_8bit": True}
        if name == "bnb_4bit":
            # NF4, as in QLoRA (arXiv 2305.14314).
            bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute_dtype}
        config = BitsAndBytesConfig(**bits)
    return PipelineQuantizationConfig(quant_mapping={"transformer": config})
