import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from audiox_diffusers import AudioXAutoencoderOobleck
from audiox_diffusers.training.autoencoder import main

CONFIG = {
    "encoder_hidden_size": 2,
    "downsampling_ratios": [32, 4],
    "channel_multiples": [16, 16],
    "decoder_channels": 2,
    "decoder_input_channels": 4,
    "audio_channels": 1,
    "sampling_rate": 8000,
}


@pytest.fixture
def run(scenes, tmp_path, capsys):
    """Train a small VAE in this process; gives what the log says of each step, in order."""
    (tmp_path / "vae.json").write_text(json.dumps({"_class_name": "AudioXAutoencoderOobleck", **CONFIG}))

    def train(output: str, *options: object) -> list[dict]:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        usual = ["--vae_config", tmp_path / "vae.json", "--dataset", scenes, "--output_dir", tmp_path / output]
        usual += ["--max_train_steps", 4, "--train_batch_size", 2, "--lr_warmup_steps", 0, "--checkpointing_steps", 2]
        main([str(word) for word in (*usual, *options)])
        return [json.loads(line) for line in (tmp_path / output / "log.jsonl").read_text().splitlines()]

    return train


@pytest.mark.slow
def test_a_run_learns_and_writes_the_vae(run, tmp_path):
    log = run("out", "--max_train_steps", 60, "--learning_rate", 2e-3, "--checkpointing_steps", 20)
    assert [report["step"] for report in log] == list(range(1, 61))
    held_out = [report["held_out"] for report in log if "held_out" in report]
    assert len(held_out) == 3 and held_out[2] < held_out[0]
    vae = AudioXAutoencoderOobleck.from_pretrained(tmp_path / "out" / "vae")
    assert vae.encode(torch.zeros(1, 1, 1280)).latent_dist.mode().shape == (1, 4, 10)


@pytest.mark.slow
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(run, tmp_path):
    whole = run("out")
    resumed = run("out", "--resume_from_checkpoint", "checkpoint-2")
    assert [report["step"] for report in resumed] == [1, 2, 3, 4, 3, 4]
    assert [report["loss"] for report in resumed[4:]] == [report["loss"] for report in whole[2:]]


def test_what_cannot_be_trained_on_is_told(run, tmp_path):
    with pytest.raises(SystemExit, match="`--dataset .*nix` cannot be opened"):
        run("out", "--dataset", tmp_path / "nix")
    (tmp_path / "lines.jsonl").write_text('{"caption": "rain"}\n')
    with pytest.raises(SystemExit, match="has neither a column audio nor a column video"):
        run("out", "--dataset", tmp_path / "lines.jsonl")
    assert not (tmp_path / "out").exists()
