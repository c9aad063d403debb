import json
import os
from pathlib import Path

# Set before any import: tests do not use the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# On CPUs with AMX, oneDNN computes a strided bfloat16 convolution from 8 to 16 channels wrong. The small checkpoints have
# one, the released models do not.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"

import pytest
import torch
from helpers import letter_tokenizer
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from audiox_diffusers import AudioXPipeline, load_original_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="session")
def close():
    """Return a check that a tensor equals a golden one, with a relative error below 1e-4 or the given tolerance."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
        error = relative_error(actual, expected)
        print(f"\n{os.environ['PYTEST_CURRENT_TEST']}: relative error {error:.1e}")
        assert error < tolerance

    return check


@pytest.fixture(scope="session")
def fixtures_path() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Output of the released code for the small checkpoint; see tests/fixtures/README.md."""
    return load_file(FIXTURES / "audiox" / "golden.safetensors")


def read_manifest(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the config of a released checkpoint, and its tensors at full size on the meta device."""
    source = "audiox-maf-mmdit" if name == "audiox-turbo" else name
    config = json.loads((FIXTURES / "manifest" / f"{source}.config.json").read_text())
    shapes = json.loads((FIXTURES / "manifest" / f"{source}.keys.json").read_text())
    state_dict = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    if name == "audiox-turbo":
        # AudioX-MAF-MMDiT with a shorter audio prompt, another objective, and the VAE in a separate file.
        audio = "conditioner.conditioners.audio_prompt."
        state_dict = {key: tensor for key, tensor in state_dict.items() if "pretransform." not in key}
        state_dict[audio + "proj_features_128.weight"] = torch.empty(128, 215, device="meta")
        config["model"]["diffusion"]["diffusion_objective"] = "rectified_flow"
        config["model"]["conditioning"]["configs"][2]["type"] = "audio_autoencoder"
    return config, state_dict


@pytest.fixture(scope="session")
def manifest() -> tuple[dict, dict[str, torch.Tensor]]:
    return read_manifest("audiox")


@pytest.fixture(scope="session", params=["audiox", "audiox-maf", "audiox-maf-mmdit", "audiox-turbo"])
def any_manifest(request) -> tuple[str, dict, dict[str, torch.Tensor]]:
    return request.param, *read_manifest(request.param)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return letter_tokenizer()


@pytest.fixture
def pipe(tokenizer) -> AudioXPipeline:
    """Load the small checkpoint as a pipeline."""
    folder = FIXTURES / "audiox"
    pipe = load_original_checkpoint(
        folder,
        text_encoder=folder / "text_encoder",
        tokenizer=tokenizer,
        image_encoder_config=folder / "image_encoder",
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
