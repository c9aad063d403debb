"""Two processes on a CPU against one that does the work of both; the configs for `accelerate launch`."""

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
from audiox_diffusers import AudioXPipeline

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))

# accelerate keeps FSDP2 from the CPU, where torch has it: it asks only whether there are several GPUs.
FSDP_ON_CPU = """
from accelerate.state import PartialState
from accelerate.utils import DistributedType
PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
from audiox_diffusers.training import main
main()
"""
OPTIONS = ["--train_batch_size", 1, "--gradient_accumulation_steps", 2, "--max_grad_norm", 0.1, "--use_ema"]
OPTIONS += ["--ema_decay", 0.5]


@pytest.fixture
def launch(small_model, scenes, tmp_path):
    """Train in two processes: `launch(output, steps, *options, script=..., **environment)` -> losses by step."""

    def run(output: str, steps: int, *options: object, script: Path, **environment: str) -> dict[int, float]:
        usual = {
            "--pretrained_model_name_or_path": small_model,
            "--dataset": scenes,
            "--output_dir": tmp_path / output,
            "--max_train_steps": steps,
            "--learning_rate": 1e-3,
            "--checkpointing_steps": 2,
            "--dataloader_num_workers": 1,
            "--shuffle_buffer_size": 4,
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
        command += [word for pair in usual.items() for word in pair]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        subprocess.run([*map(str, command), *map(str, options)], env=environment, check=True, timeout=300)
        lines = (tmp_path / output / "log.jsonl").read_text().splitlines()
        return {report["step"]: report["loss"] for report in map(json.loads, lines)}

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name in ("transformer", "conditioner")
        for key, tensor in load_file(folder / name / "diffusion_pytorch_model.safetensors").items()
    }


def fsdp_environment(config: str) -> dict[str, str]:
    """What `accelerate launch --config_file` tells the processes."""
    values = load_config_from_file(str(ROOT / "training" / "configs" / config)).fsdp_config
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value) for key, value in values.items()}}


@pytest.mark.slow
def test_two_processes_train_as_one_does(train, launch, tmp_path):
    """Also with FSDP2, and when it goes on from a checkpoint: losses, and the averaged weights that are saved."""
    # One process with twice the accumulation and twice the workers draws the same samples in the same order.
    twice = ["--gradient_accumulation_steps", 4, "--dataloader_num_workers", 2, "--checkpointing_steps", 2]
    expected = train("one", 3, *OPTIONS, *twice)
    assert len(expected) == 3
    expected_weights = weights(tmp_path / "one")

    assert launch("ddp", 3, *OPTIONS, script=ROOT / "training" / "train_audiox.py") == pytest.approx(expected, rel=1e-5)
    for key, tensor in weights(tmp_path / "ddp").items():
        torch.testing.assert_close(tensor, expected_weights[key], rtol=0, atol=1e-5)

    script = tmp_path / "fsdp.py"
    script.write_text(FSDP_ON_CPU)
    environment = fsdp_environment("several_nodes.yaml")
    launch("fsdp", 2, *OPTIONS, script=script, **environment)
    resume = ["--resume_from_checkpoint", "latest"]
    losses = launch("fsdp", 3, *OPTIONS, *resume, script=script, **environment)
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, tensor in weights(tmp_path / "fsdp").items():
        torch.testing.assert_close(tensor, expected_weights[key], rtol=0, atol=1e-5)
    AudioXPipeline.from_pretrained(tmp_path / "fsdp")
    # Sharded, and each process with the averages of its shard.
    checkpoint = tmp_path / "fsdp" / "checkpoint-3"
    assert (checkpoint / "pytorch_model_fsdp_0" / ".metadata").exists()
    assert all((checkpoint / f"ema-{process}.bin").stat().st_size < 6e6 for process in range(2))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs(path):
    config = load_config_from_file(str(path))
    assert path.read_text().startswith("# ")
    assert config.mixed_precision == "bf16"
    assert config.num_processes % config.num_machines == 0

    # Keys that the launcher does not know would be passed over in silence.
    options = {action.dest for action in launch_command_parser()._actions}
    assert not {*config.fsdp_config, *config.deepspeed_config} - options
    for name in config.fsdp_config.get("fsdp_transformer_layer_cls_to_wrap", "").split(","):
        assert not name or hasattr(audiox_diffusers, name)
    if config.distributed_type == DistributedType.FSDP:
        assert config.fsdp_config["fsdp_version"] == 2
        # The frozen encoders are not part of what FSDP hands out.
        assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False
