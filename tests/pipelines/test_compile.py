"""Compiled blocks, and contexts that are kept for them and for several batches of windows."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from helpers import seeded
from peft import LoraConfig
from torch._dynamo.utils import counters

from audiox_diffusers import AudioXInpaintPipeline, AudioXMMTransformer2DModel
from audiox_diffusers.testing import create_small_pipeline

STEPS = 3
RATE = 44100


@pytest.fixture(params=["dit", "mmdit"])
def any_pipe(request):
    """Return the small pipeline with either transformer."""
    pipe = create_small_pipeline()
    if request.param == "mmdit":
        config = pipe.transformer.config
        tokens = pipe.encode_conditions("rain").shape[1]
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            pipe.transformer = AudioXMMTransformer2DModel(
                sample_size=config.sample_size,
                in_channels=config.in_channels,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=8,
                cross_attention_input_dim=config.cross_attention_input_dim,
                num_context_tokens=tokens,
                ff_inner_dim=32,
            ).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompt="rain", seeds=(0,), **kwargs):
    kwargs = {"num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 3.0, **kwargs}
    return pipe(prompt, generator=[seeded(seed) for seed in seeds], **kwargs).audios


def count_projections(pipe, monkeypatch) -> list[int]:
    calls, kind = [], type(pipe.transformer)
    project = kind.project_context
    monkeypatch.setattr(kind, "project_context", lambda *args, **kwargs: calls.append(1) or project(*args, **kwargs))
    return calls


@pytest.fixture
def compiled():
    """Compile a pipeline, without the code that earlier tests compiled."""
    torch._dynamo.reset()
    counters.clear()
    # Autograd's view of a graph, without a C++ compiler.
    yield lambda pipe: pipe.compile(backend="aot_eager")
    torch._dynamo.reset()


def test_compiled_blocks_are_not_compiled_again(any_pipe, compiled, monkeypatch):
    """Whatever the steps, prompts, seeds, callbacks and guidance interval are."""
    calls = [
        {},
        {"prompt": ["a dog", "wind"], "seeds": [1, 2]},
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.2, 0.8), "num_inference_steps": 6},
        {"negative_prompt": "noise", "seeds": [5]},
        {"prompt": ["a", "b", "c"], "seeds": [3, 4, 5]},
        {"callback_on_step_end": lambda pipe, step, time, tensors: tensors},
        {"audio_length_in_s": 3.0},
    ]
    expected = [generate(any_pipe, **kwargs) for kwargs in calls]
    compiled(any_pipe)
    projections = count_projections(any_pipe, monkeypatch)
    found = [generate(any_pipe, **kwargs) for kwargs in calls[:2]]
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1 and len(projections) == 2
    found += [generate(any_pipe, **kwargs) for kwargs in calls[2:]]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # One more for a batch of a single row, which the compiler treats on its own.
    assert counters["stats"]["unique_graphs"] - graphs <= 1
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    for kwargs in calls:
        generate(any_pipe, **kwargs)
    assert counters["stats"]["unique_graphs"] == graphs


def test_edits_run_compiled(compiled, pipe):
    sound = torch.randn(2, 300, generator=seeded()) / 4
    edit = {"prompt": "rain", "audio": (sound, RATE), "inpaint_spans": [(0.001, 0.003)], "crossfade_ms": 0}
    editor = AudioXInpaintPipeline.from_pipe(pipe)
    expected = editor(**edit, num_inference_steps=STEPS, generator=seeded()).audios
    compiled(editor)
    found = editor(**edit, num_inference_steps=STEPS, generator=seeded()).audios
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]


# Long sounds


def test_batches_of_windows_keep_their_contexts(any_pipe, monkeypatch):
    long = {"audio_length_in_s": 7.0, "window_batch_size": 1}
    projections = count_projections(any_pipe, monkeypatch)
    expected = generate(any_pipe, **long)
    windows = len(projections)
    assert windows > 2
    projections.clear()
    any_pipe.max_context_bytes = 0
    assert torch.equal(generate(any_pipe, **long), expected)
    # Only the first context is kept.
    assert len(projections) == 1 + STEPS * (windows - 1)


def test_adapters_change_the_context_that_is_kept(pipe):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        pipe.transformer.add_adapter(
            LoraConfig(r=4, lora_alpha=64, target_modules=["to_k", "to_v"], init_lora_weights=False)
        )
    results = [generate(pipe, attention_kwargs={"scale": scale}) for scale in (0.0, 1.0, 0.0)]
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_of_blocks_remembers_each_batch_of_windows(any_pipe, batch):
    """Compared with a cache that never answers."""
    long = {"audio_length_in_s": 7.0, "window_batch_size": batch}
    expected = generate(any_pipe, **long)
    any_pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(generate(any_pipe, **long), expected, rtol=1e-4, atol=1e-4)
