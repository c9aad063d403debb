import json

import diffusers
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from diffusers.hooks._helpers import TransformerBlockRegistry

import audiox_diffusers
from audiox_diffusers import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXDPMSolverSDEScheduler,
    AudioXPipeline,
    AudioXTransformer2DModel,
)
from audiox_diffusers.diffusers_registry import RegisteredPipelineMixin
from audiox_diffusers.models.transformer_audiox import AudioXTransformerBlock


@pytest.mark.parametrize("name", [name for name in audiox_diffusers.__all__ if name.startswith("AudioX")])
def test_classes_are_attributes_of_diffusers(name):
    assert getattr(diffusers, name) is getattr(audiox_diffusers, name)


def test_block_is_registered_for_caching():
    metadata = TransformerBlockRegistry.get(AudioXTransformerBlock)
    assert metadata.return_hidden_states_index == 0
    assert metadata.return_encoder_hidden_states_index is None
    hidden_states = torch.ones(1)
    assert metadata._get_parameter_from_args_kwargs("hidden_states", (hidden_states, None, None)) is hidden_states


class SmallPipeline(RegisteredPipelineMixin, DiffusionPipeline):
    """Components of this package, of diffusers, none, and a plain value."""

    _optional_components = ["vae"]

    def __init__(self, transformer, scheduler, other_scheduler, vae=None, guided: bool = True):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, other_scheduler=other_scheduler)
        self.register_to_config(guided=guided)


@pytest.fixture
def small_pipeline():
    transformer = AudioXTransformer2DModel(
        in_channels=2,
        num_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_input_dim=4,
        cross_attention_dim=4,
        time_proj_dim=4,
    )
    return SmallPipeline(transformer, AudioXDPMSolverSDEScheduler(), diffusers.DDIMScheduler())


def test_components_are_named_as_those_of_diffusers(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "AudioXTransformer2DModel"]
    assert index["scheduler"] == ["diffusers", "AudioXDPMSolverSDEScheduler"]
    assert index["other_scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["vae"] == [None, None]
    assert index["guided"] is True

    loaded = SmallPipeline.from_pretrained(tmp_path)
    assert type(loaded.transformer) is AudioXTransformer2DModel
    assert type(loaded.scheduler) is AudioXDPMSolverSDEScheduler
    weights = small_pipeline.transformer.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.transformer.state_dict().items())
    assert type(AutoModel.from_pretrained(str(tmp_path), subfolder="transformer")) is AudioXTransformer2DModel


def test_pipeline_file_stands_beside_the_index(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path / "new" / "folder")
    code = (tmp_path / "new" / "folder" / "pipeline.py").read_text()
    assert "from audiox_diffusers import SmallPipeline" in code
    compile(code, "pipeline.py", "exec")


def test_components_of_the_pipeline_are_registered():
    registered = {AudioXTransformer2DModel, AudioXAutoencoderOobleck, AudioXConditioner, AudioXDPMSolverSDEScheduler}
    assert issubclass(AudioXPipeline, RegisteredPipelineMixin)
    assert all(getattr(diffusers, each.__name__) is each for each in registered)
