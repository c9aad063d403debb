"""Two processes on a CPU against one with the same batch; configs for `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file

import audiox_diffusers
from audiox_diffusers import AudioXConditioner, AudioXPipeline

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "training" / "configs").glob("*.yaml"))

SCRIPT = """
import os, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from audiox_diffusers.training import main

if "ACCELERATE_USE_FSDP" in os.environ:
    # accelerate keeps FSDP2 from the CPU, where torch has it: it asks only whether there are several GPUs.
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def fused_model(small_model, tmp_path_factory) -> Path:
    """The small model with a fusion, whose gates have no dimensions, and with 8 audio tokens."""
    pipe = AudioXPipeline.from_pretrained(small_model)
    fusion = {"num_fusion_experts": 2, "num_fusion_heads": 2, "num_fusion_layers": 1}
    config = {**pipe.conditioner.config, **fusion, "audio_type": "audio_autoencoder_v2", "num_audio_tokens": 8}
    pipe.register_modules(conditioner=AudioXConditioner.from_config(config))
    folder = tmp_path_factory.mktemp("fused") / "audiox-fused"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def launch(fused_model, scenes, tmp_path):
    """Train in two processes, with more environment variables."""

    def run(environment: dict[str, str], output: str, steps: int, *options: str) -> None:
        usual = {
            "--pretrained_model_name_or_path": fused_model,
            "--dataset": scenes,
            "--output_dir": tmp_path / output,
            "--max_train_steps": steps,
            "--learning_rate": 1e-3,
            "--dataloader_num_workers": 0,
            "--shuffle_buffer_size": 4,
        }
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
        words = [str(word) for word in (*command, *(word for pair in usual.items() for word in pair), *options)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        subprocess.run(words, env=environment, check=True, timeout=300)

    return run


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {report["step"]: report["loss"] for report in map(json.loads, lines)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name in ("transformer", "conditioner")
        for key, tensor in load_file(folder / name / "diffusion_pytorch_model.safetensors").items()
    }


def fsdp_environment(config: str) -> dict[str, str]:
    """Return the environment that `accelerate launch --config_file` sets."""
    (path,) = [path for path in CONFIGS if path.name == config]
    values = load_config_from_file(str(path)).fsdp_config
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value) for key, value in values.items()}}


@pytest.mark.slow
def test_two_processes_train_as_one_does(train, launch, fused_model, tmp_path):
    """Losses and averaged weights with DDP, with FSDP2 and after a resume with FSDP2."""
    options = ["--train_batch_size", "1", "--gradient_accumulation_steps", "2", "--checkpointing_steps", "2"]
    options += ["--max_grad_norm", "0.1", "--use_ema", "--ema_decay", "0.5"]
    fsdp = fsdp_environment("several_nodes.yaml")
    launch({}, "ddp", 3, *options)
    launch(fsdp, "fsdp", 2, *options)
    launch(fsdp, "fsdp", 3, *options, "--resume_from_checkpoint", "latest")
    # One process with twice the accumulation and a worker for each of the two takes the same samples.
    twice = ["--gradient_accumulation_steps", 4, "--dataloader_num_workers", 2]
    expected = train("one", 3, *options, *twice, "--pretrained_model_name_or_path", fused_model)
    expected_weights = weights(tmp_path / "one")
    assert len(expected) == 3
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-5)
        for key, tensor in weights(tmp_path / name).items():
            torch.testing.assert_close(tensor, expected_weights[key], rtol=0, atol=1e-5)
    fusion = AudioXPipeline.from_pretrained(tmp_path / "fsdp").conditioner.fusion
    assert fusion.bypass_gate_0.shape == ()

    # Each process keeps the averages of its own shard.
    whole = (tmp_path / "ddp" / "checkpoint-3" / "ema.safetensors").stat().st_size
    shards = [
        (tmp_path / "fsdp" / "checkpoint-3" / f"ema-{process}.safetensors").stat().st_size for process in range(2)
    ]
    assert all(size < 0.6 * whole for size in shards)
    assert sum(shards) == pytest.approx(whole, rel=0.05)


def test_configs_exist():
    assert [path.stem for path in CONFIGS] == ["deepspeed_zero2", "low_memory", "one_gpu", "one_node", "several_nodes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_config(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes % config.num_machines == 0

    # The launcher passes over keys that it does not know.
    options = {action.dest for action in launch_command_parser()._actions}
    assert not {*config.fsdp_config, *config.deepspeed_config} - options
    for name in filter(None, config.fsdp_config.get("fsdp_transformer_layer_cls_to_wrap", "").split(",")):
        assert hasattr(audiox_diffusers, name)
    if config.distributed_type == DistributedType.FSDP:
        assert config.fsdp_config["fsdp_version"] == 2
        # It would leave the frozen encoders of transformers empty.
        assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False
