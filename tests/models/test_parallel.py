"""The transformer split over two processes on a CPU, by context and by weights, against the whole one."""

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

from audiox_diffusers import AudioXTransformer2DModel

# diffusers takes a CPU for no place to be parallel: it counts accelerators, and has a list of them.
torch.accelerator.device_count = lambda: 1
tensor_parallel._SUPPORTED_TP_DEVICES += ("cpu",)

def all_gather(tensors, tensor, group):
    # That of gloo wants tensors of one size.
    gathered = [None] * len(tensors)
    torch.distributed.all_gather_object(gathered, tensor, group)
    for target, source in zip(tensors, gathered):
        target.copy_(source)

torch.distributed.all_gather = all_gather
torch.distributed.init_process_group("gloo")
config, frames = json.loads(sys.argv[1]), int(sys.argv[2])
kind = ContextParallelConfig if "ulysses_degree" in config else TensorParallelConfig

torch.manual_seed(0)
model = AudioXTransformer2DModel(
    in_channels=8, num_layers=3, attention_head_dim=32, num_attention_heads=4, num_key_value_attention_heads=2,
    cross_attention_input_dim=24, cross_attention_dim=16, time_proj_dim=16,
).eval()
inputs = torch.randn(2, 8, frames), torch.tensor([0.3, 0.9]), torch.randn(2, 7, 24)
inputs[2][0] = 0

def run():
    tokens = []
    block = model.transformer_blocks[1]
    hook = block.norm3.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    with torch.no_grad():
        output = model(*inputs).sample
    hook.remove()
    weight = block.ff.net[2].weight
    return output, tokens + list(getattr(weight, "to_local", lambda: weight)().shape)

whole, whole_seen = run()
model.enable_parallelism(config=kind(**config))
split, split_seen = run()
report = {
    "error": (split - whole).abs().max().item(),
    "level": whole.abs().max().item(),
    "seen": [whole_seen, split_seen],
}
Path(sys.argv[3], f"{torch.distributed.get_rank()}.json").write_text(json.dumps(report))
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def split(tmp_path):
    """
    Run a model of 4 heads, whole and split over two processes; for each process the difference, the level, and what
    the second block has, whole and split: its tokens, and the shape of its feed-forward's second weight.
    """

    def run(config: dict, frames: int) -> list[dict]:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
        command += [json.dumps(config), frames, tmp_path]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([str(word) for word in command], env=environment, check=True, timeout=300)
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "frames", "seen"),
    [
        # The time token is one of those that are split.
        ({"ulysses_degree": 2}, 11, [[6, 128, 512], [6, 128, 512]]),
        ({"ulysses_degree": 2, "ulysses_anything": True}, 12, [[7, 128, 512], [6, 128, 512]]),
        ({"tp_degree": 2}, 12, [[13, 128, 256], [13, 128, 256]]),
    ],
    ids=["context", "context of odd length", "tensors"],
)
def test_two_processes_give_what_one_does(split, config, frames, seen):
    reports = split(config, frames)
    for report, own in zip(reports, seen, strict=True):
        assert report["level"] > 0.1
        assert report["error"] < 1e-5
        assert report["seen"] == [[frames + 1, 128, 512], own]
