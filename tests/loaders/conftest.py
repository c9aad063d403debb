import copy

import pytest
from diffusers.utils import logging
from lora_pipelines import TRANSFORMERS, add_adapter, build_pipeline, save_adapter

from audiox_diffusers import AudioXPipeline


@pytest.fixture(scope="session")
def lora_pipelines() -> dict[str, AudioXPipeline]:
    """One pipeline per transformer class. Tests copy them."""
    return {kind: build_pipeline(kind) for kind in TRANSFORMERS}


@pytest.fixture(params=TRANSFORMERS)
def lora_pipe(request, lora_pipelines) -> AudioXPipeline:
    return copy.deepcopy(lora_pipelines[request.param])


@pytest.fixture
def saved(lora_pipe, tmp_path):
    """A folder with the adapters `a`, `b` and `both`. `both` also has layers in the conditioner."""
    for seed, name in enumerate(("a", "b", "both")):
        pipe = copy.deepcopy(lora_pipe)
        add_adapter(pipe, seed=seed, r=2 + seed, conditioner=name == "both")
        save_adapter(pipe, tmp_path / name)
    return tmp_path


@pytest.fixture
def warnings_of(caplog, monkeypatch):
    """Return a function for the log messages of diffusers and this package so far."""
    for name in ("diffusers", "audiox_diffusers"):
        monkeypatch.setattr(logging.get_logger(name), "propagate", True)
    return lambda: caplog.text
