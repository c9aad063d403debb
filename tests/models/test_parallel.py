"""Transformers split over two processes by context or by weights, compared with whole ones. On a CPU."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path

import torch
import torch.distributed
from diffusers import ContextParallelConfig, TensorParallelConfig
from diffusers.hooks import tensor_parallel

from audiox_diffusers import AudioXMMTransformer2DModel, AudioXTransformer2DModel

# diffusers does not run in parallel on CPUs. It counts accelerators, and has a list of them.
torch.accelerator.device_count = lambda: 1
tensor_parallel._SUPPORTED_TP_DEVICES += ("cpu",)

def all_gather(tensors, tensor, group):
    # gloo's own only takes tensors of one size.
    gathered = [None] * len(tensors)
    torch.distributed.all_gather_object(gathered, tensor, group)
    for target, source in zip(tensors, gathered):
        target.copy_(source)

torch.distributed.all_gather = all_gather
torch.distributed.init_process_group("gloo")
name, config, frames = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
kind = TensorParallelConfig if "tp_degree" in config else ContextParallelConfig

torch.manual_seed(0)
shared = dict(in_channels=8, num_layers=3, attention_head_dim=32, num_attention_heads=4, cross_attention_input_dim=24,
    time_proj_dim=16)
if name == "dit":
    model = AudioXTransformer2DModel(num_key_value_attention_heads=2, cross_attention_dim=16, **shared)
else:
    model = AudioXMMTransformer2DModel(sample_size=frames, num_context_tokens=7, ff_inner_dim=80, **shared)
model.eval()
inputs = torch.randn(2, 8, frames), torch.tensor([0.3, 0.9]), torch.randn(2, 7, 24)
inputs[2][0] = 0

def run():
    tokens = []
    block = model.transformer_blocks[1]
    hook = block.norm2.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    with torch.no_grad():
        context = model.project_context(inputs[2])
        output = model(*inputs).sample
        for _ in range(2):
            cached = model(*inputs[:2], context).sample
    hook.remove()
    assert torch.equal(output, cached)
    weights = [block.ff.net[2].weight] if name == "dit" else [block.attn1.to_q.weight, block.modulation.weight]
    shapes = [list(getattr(weight, "to_local", lambda: weight)().shape) for weight in weights]
    return output, [tokens[0], *shapes]

whole, whole_seen = run()
model.enable_parallelism(config=kind(**config))
split, split_seen = run()
report = {
    "error": (split - whole).abs().max().item(),
    "level": whole.abs().max().item(),
    "seen": [whole_seen, split_seen],
}
Path(sys.argv[4], f"{torch.distributed.get_rank()}.json").write_text(json.dumps(report))
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def split(tmp_path):
    """
    Return a function that runs a model of 4 heads, whole and split over two processes. It returns for each process the
    difference, the level, and what the second block has in both cases: the number of tokens, and shapes of weights.
    """

    def run(name: str, config: dict, frames: int) -> list[dict]:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
        command += [name, json.dumps(config), frames, tmp_path]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([str(word) for word in command], env=environment, check=True, timeout=300)
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    return run


DIT, MMDIT = [[128, 512]], [[128, 128], [768, 128]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "frames", "whole", "parts"),
    [
        # The time token is split with the others.
        ("dit", {"ulysses_degree": 2}, 11, [12, *DIT], [[6, *DIT]] * 2),
        ("dit", {"ulysses_degree": 2, "ulysses_anything": True}, 12, [13, *DIT], [[7, *DIT], [6, *DIT]]),
        ("dit", {"tp_degree": 2}, 12, [13, *DIT], [[13, [128, 256]]] * 2),
        ("mmdit", {"ulysses_degree": 2}, 11, [12, *MMDIT], [[6, *MMDIT]] * 2),
        ("mmdit", {"ulysses_degree": 2, "ulysses_anything": True}, 12, [13, *MMDIT], [[7, *MMDIT], [6, *MMDIT]]),
        ("mmdit", {"ulysses_degree": 2}, 1, [2, *MMDIT], [[1, *MMDIT]] * 2),
        ("mmdit", {"tp_degree": 2}, 12, [13, *MMDIT], [[13, [64, 128], [384, 128]]] * 2),
    ],
)
def test_two_processes_give_the_output_of_one(split, name, config, frames, whole, parts):
    reports = split(name, config, frames)
    for report, own in zip(reports, parts, strict=True):
        assert report["level"] > 0.1
        assert report["error"] < 1e-5
        assert report["seen"] == [whole, own]
