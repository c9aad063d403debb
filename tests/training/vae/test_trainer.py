"""Training of a VAE at toy size."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset

from audiox_diffusers import AudioXAutoencoderOobleck
from audiox_diffusers.media import save_audio
from audiox_diffusers.training.arguments import build_parser
from audiox_diffusers.training.vae.trainer import VaeArguments, VaeTrainer, main, parse_args

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "_class_name": "AudioXAutoencoderOobleck",
    "encoder_hidden_size": 2,
    "downsampling_ratios": [32, 4],
    "channel_multiples": [16, 16],
    "decoder_channels": 2,
    "decoder_input_channels": 4,
    "audio_channels": 1,
    "sampling_rate": 8000,
}
NEEDED = ["--vae_config", "vae.json", "--dataset", "data", "--output_dir", "out", "--max_train_steps", "4"]
NAN_OR_INFINITE = ["nan", "inf", "-inf"]
BAD_VALUES = {
    **{
        name: [0, -1, 1.5]
        for name in (
            "segment_frames",
            "train_batch_size",
            "max_train_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
        )
    },
    "lr_warmup_steps": [-1],
    "learning_rate": [0, -1, *NAN_OR_INFINITE],
    "max_grad_norm": [0, -1, *NAN_OR_INFINITE],
    "kl_weight": [-1, *NAN_OR_INFINITE],
    "l1_weight": [-1, *NAN_OR_INFINITE],
    "seed": [-1, 2**32],
}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "vae.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def words(config, scenes, tmp_path):
    """Options of a short run. Given options replace the usual ones."""

    def make(output: str, *options: object) -> list[str]:
        usual = ["--vae_config", config, "--dataset", scenes, "--output_dir", tmp_path / output]
        usual += ["--max_train_steps", 4, "--train_batch_size", 2, "--segment_frames", 10]
        usual += ["--lr_warmup_steps", 0, "--checkpointing_steps", 2]
        return [str(word) for word in (*usual, *options)]

    return make


@pytest.fixture
def run(words, tmp_path):
    """Train in this process and return the report of each step."""

    def train(output: str, *options: object) -> list[dict]:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        main(words(output, *options))
        return log(tmp_path / output)

    return train


def log(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("name", BAD_VALUES)
def test_numbers_out_of_range(capsys, name):
    for value in BAD_VALUES[name]:
        with pytest.raises(SystemExit, match="2"):
            parse_args([*NEEDED, f"--{name}={value}"])
        said = capsys.readouterr().err.splitlines()[-1]
        assert name in said and (str(value) in said or f"{value:g}" in said)


def test_every_number_is_checked():
    assert {action.dest for action in build_parser(VaeArguments, "")._actions if action.type in (int, float)} == set(
        BAD_VALUES
    )


def test_output_folder_that_is_a_file(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args([*NEEDED, "--output_dir", __file__])
    assert "--output_dir must be a folder" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_run_learns_and_writes_the_vae(run, tmp_path):
    reports = run("out", "--max_train_steps", 60, "--learning_rate", 2e-3, "--checkpointing_steps", 20)
    assert [report["step"] for report in reports] == list(range(1, 61))
    held_out = [report["held_out"] for report in reports if "held_out" in report]
    assert len(held_out) == 3 and held_out[2] < held_out[0]
    assert reports[-1]["lr"] < 0.01 * reports[0]["lr"]
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-40", "checkpoint-60"}
    vae = AudioXAutoencoderOobleck.from_pretrained(tmp_path / "out" / "vae")
    assert vae.encode(torch.zeros(1, 1, 1280)).latent_dist.mode().shape == (1, 4, 10)


def test_resume_is_exact(run, tmp_path):
    whole = run("out")
    weights = (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert run("out", "--resume_from_checkpoint", "checkpoint-2") == whole
    assert (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_sigterm_writes_a_checkpoint_and_resume_is_exact(run, tmp_path, monkeypatch):
    options = ["--checkpointing_steps", 4]
    whole = run("whole", *options)
    report = VaeTrainer._report

    def interrupt(trainer, *args):
        report(trainer, *args)
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VaeTrainer, "_report", interrupt)
    # The signal comes after the step's own look at it: one more step is taken.
    assert [report["step"] for report in run("broken", *options)] == [1, 2]
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "broken" / "vae").exists()
    assert run("broken", *options, "--resume_from_checkpoint", "latest") == whole


def test_full_disk_keeps_earlier_checkpoints(run, tmp_path):
    """A limit on the file size stands for the full disk: writing fails in the middle of a file."""
    run("out", "--max_train_steps", 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match="checkpoint-4 could not be written.*checkpoint-2"):
            run("out", "--resume_from_checkpoint", "latest")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").glob(".checkpoint-*"))
    assert len(run("out", "--resume_from_checkpoint", "latest")) == 4


def test_resume_of_another_run_is_refused(run, config, tmp_path):
    run("out", "--max_train_steps", 2)
    for option, value, said in [
        ("--seed", 1, "--seed was 0 and is 1"),
        ("--kl_weight", 1, "--kl_weight was 3e-05 and is 1.0"),
        ("--segment_frames", 12, "--segment_frames was 10 and is 12"),
    ]:
        with pytest.raises(SystemExit, match=f"^error: .*{said}"):
            run("out", option, value, "--resume_from_checkpoint", "latest")
    with pytest.raises(SystemExit, match="checkpoint-7: .* has checkpoint-2"):
        run("out", "--resume_from_checkpoint", "checkpoint-7")
    config.write_text(json.dumps({**CONFIG, "decoder_input_channels": 8}))
    with pytest.raises(SystemExit, match="vae.decoder_input_channels was 4 and is 8"):
        run("out", "--resume_from_checkpoint", "latest")
    # Where the config lies, how long the run is and what is kept may change.
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(CONFIG))
    options = ["--vae_config", moved, "--max_train_steps", 3, "--checkpoints_total_limit", 1]
    assert len(run("out", *options, "--resume_from_checkpoint", "latest")) == 3


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "No such file"),
        ("{", "Expecting property name"),
        ({**CONFIG, "num_layers": 2}, "num_layers"),
        ({**CONFIG, "downsampling_ratios": [33, 4]}, "`downsampling_ratios` must be even"),
        ({**CONFIG, "channel_multiples": [4, 16]}, "first ratio 32 needs 32 channels"),
    ],
)
def test_bad_vae_config(run, config, written, said):
    config.unlink()
    if written is not None:
        config.write_text(written if isinstance(written, str) else json.dumps(written))
    with pytest.raises(SystemExit, match=f"^error: --vae_config .*vae.json: .*{said}"):
        run("out")


def test_unusable_data(run, tmp_path):
    with pytest.raises(SystemExit, match="`--dataset .*nix` cannot be opened"):
        run("out", "--dataset", tmp_path / "nix")
    (tmp_path / "lines.jsonl").write_text('{"caption": "rain"}\n')
    with pytest.raises(SystemExit, match="has neither a column audio nor a column video, but caption"):
        run("out", "--dataset", tmp_path / "lines.jsonl")
    with pytest.raises(
        SystemExit, match="--segment_frames 8 are 1024 samples of this VAE; the loss needs more than 1024"
    ):
        run("out", "--segment_frames", 8)
    save_audio(tmp_path / "hum.wav", 0.1 * torch.ones(1, 4000), 8000)
    hum = {"bytes": (tmp_path / "hum.wav").read_bytes(), "path": "hum.wav"}
    Dataset.from_dict({"audio": [hum]}).to_parquet(tmp_path / "one.parquet")
    with pytest.raises(SystemExit, match="--dataset has only one usable recording"):
        run("out", "--dataset", tmp_path / "one.parquet")
    Dataset.from_dict({"audio": [{"bytes": b"noise", "path": "a.wav"}]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(
        SystemExit, match="none.parquet has no usable audio; its last row: .*not a sound or video file"
    ):
        run("out", "--dataset", tmp_path / "none.parquet")
    assert not (tmp_path / "out").exists()


def test_skipped_rows_are_listed(run, scenes, tmp_path):
    save_audio(tmp_path / "silent.wav", torch.zeros(1, 4000), 8000)
    silent = {"bytes": (tmp_path / "silent.wav").read_bytes(), "path": "silent.wav"}
    (video, *_) = sorted(scenes.glob("*.mp4"))
    rows = {
        "audio": [{"bytes": b"noise", "path": "a.wav"}, silent, None, None, None],
        "video": [None, None, *[{"bytes": video.read_bytes(), "path": "b.mp4"}] * 2, None],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    run("out", "--dataset", tmp_path / "rows.parquet", "--max_train_steps", 1)
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [0, 1, 4]
    reasons = ("not a sound or video file", "is silent", "has neither audio nor video")
    assert all(reason in row["reason"] for row, reason in zip(skipped, reasons, strict=True))


@pytest.mark.slow
def test_two_processes(run, words, tmp_path):
    """Processes start with equal weights and draw different segments and noise."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [ROOT / "training" / "train_vae.py", *words("two", "--learning_rate", 1e-12)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([str(word) for word in command], env=environment, check=True, timeout=300)
    one, two = run("one", "--learning_rate", 1e-12), log(tmp_path / "two")
    assert [report["step"] for report in two] == [1, 2, 3, 4]
    # Weights that hardly move: the held-out loss is that of one process, the mean over its segments is not.
    assert two[-1]["held_out"] == pytest.approx(one[-1]["held_out"], rel=1e-5)
    assert all(a["spectral"] != pytest.approx(b["spectral"], rel=1e-3) for a, b in zip(one, two, strict=True))
    assert {path.name for path in (tmp_path / "two" / "checkpoint-4").glob("random-*")} == {
        f"random-{process}.{suffix}" for process in range(2) for suffix in ("json", "safetensors")
    }


def test_resume_runs_no_code(run, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    run("out", "--max_train_steps", 2)
    for name in ("optimizer.json", "random-0.safetensors", "custom_checkpoint_0.pkl"):
        path = tmp_path / "out" / "checkpoint-2" / name
        before = path.read_bytes() if path.exists() else None
        torch.save({"state": Payload()}, path)
        with pytest.raises(SystemExit, match="^error: --resume_from_checkpoint: .*checkpoint-2.* cannot be used"):
            run("out", "--resume_from_checkpoint", "latest")
        path.unlink() if before is None else path.write_bytes(before)
    assert not (tmp_path / "marker").exists()
    assert len(run("out", "--resume_from_checkpoint", "latest")) == 4


def test_diverging_run_keeps_its_last_good_checkpoint(run, tmp_path):
    run("out", "--max_train_steps", 2)
    step = VaeTrainer._train_step

    def diverge(trainer):
        segments = trainer.recordings
        trainer.recordings = [segment * float("nan") for segment in segments]
        try:
            return step(trainer)
        finally:
            trainer.recordings = segments

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(VaeTrainer, "_train_step", diverge)
        options = ["--max_train_steps", 6, "--resume_from_checkpoint", "latest", "--checkpointing_steps", 1]
        with pytest.raises(SystemExit, match="^error: training diverged: .* Checkpoints in .*: checkpoint-2. "):
            run("out", *options)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2"}


def test_too_large_learning_rate(run, tmp_path):
    with pytest.raises(SystemExit, match="^error: training diverged"):
        run("out", "--learning_rate", 1e25)
    assert not (tmp_path / "out" / "vae").exists()
