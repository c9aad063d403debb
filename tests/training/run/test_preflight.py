"""What is wrong around a run is found before the first step, and what fails beside it does not end it."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import refused

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.training import arguments, export, parse_args
from audiox_diffusers.training.run.preflight import check_backend

ROOT = Path(__file__).resolve().parents[3]


class Hub(http.server.BaseHTTPRequestHandler):
    """A Hub that creates repositories, and lets nobody write to some."""

    def do_POST(self):
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["name"]
        self.send(409 if name == "foreign" else 200, {"url": f"{self.server.url}/someone/{name}", "name": name})

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send(403 if "foreign" in self.path or self.headers["Authorization"] != "Bearer hf_good" else 200, {})

    def send(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def options(*words: str):
    needed = [
        "--pretrained_model_name_or_path",
        "m",
        "--dataset",
        "d",
        "--output_dir",
        "out",
        "--max_train_steps",
        "1",
    ]
    return parse_args([*needed, "--push_to_hub", *words])


def test_repository_that_may_be_written(hub):
    export.check_repository(options("--hub_token", "hf_good", "--hub_model_id", "someone/mine"))
    assert hub.asked[-1] == "/api/models/someone/mine/auth-check/write"


@pytest.mark.parametrize(("name", "token"), [("someone/foreign", "hf_good"), ("someone/mine", "hf_other")])
def test_repository_that_may_not_be_written(hub, name, token):
    with refused("--push_to_hub", name, "--hub_model_id", "--hub_token"):
        export.check_repository(options("--hub_token", token, "--hub_model_id", name))


def test_a_hub_that_cannot_be_reached(train, tmp_path):
    with pytest.raises(ValueError, match="--push_to_hub: cannot write to out on the Hub"):
        train("out", 1, "--push_to_hub")
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_an_upload_that_fails_does_not_end_the_run(train, tmp_path, monkeypatch, caplog):
    def fail(*given, **options):
        raise ConnectionError("the Hub is gone")

    monkeypatch.setattr("audiox_diffusers.training.trainer.check_repository", lambda args: None)
    monkeypatch.setattr(export, "create_repo", fail)
    assert len(train("out", 1, "--push_to_hub")) == 1
    AudioXPipeline.from_pretrained(tmp_path / "out")


class Tracker:
    name = "tensorboard"

    def __getattr__(self, name):
        raise ConnectionError("the server is gone")


def test_a_tracker_that_fails_does_not_end_the_run(train, tmp_path, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "rain"}\n')

    def start(accelerator, *given, **options):
        accelerator.trackers = [Tracker()]

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", start)
    validation = ["--validation_prompts", tmp_path / "prompts.jsonl", "--validation_inference_steps", 1]
    assert len(train("out", 2, "--report_to", "tensorboard", *validation)) == 2
    assert (tmp_path / "out" / "model_index.json").exists()


def test_a_tracker_that_cannot_start(train, tmp_path, monkeypatch):
    def fail(*given, **options):
        raise ConnectionError("no login")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", fail)
    with pytest.raises(ValueError, match="--report_to tensorboard cannot be started: no login"):
        train("out", 1, "--report_to", "tensorboard")


class Recorder:
    name = "wandb"

    def __init__(self):
        self.logged = []

    def log(self, values, step, **options):
        self.logged.append((step, sorted(values)))

    def finish(self):
        pass


def test_several_trackers(train, monkeypatch):
    """One that fails does not keep the reports from the other."""
    recorder, asked = Recorder(), []
    monkeypatch.setitem(arguments.TRACKERS, "wandb", lambda: True)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, *given: asked.append(names) or names)

    def start(accelerator, *given, **options):
        accelerator.trackers = [Tracker(), recorder]

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", start)
    train("out", 2, "--report_to", "tensorboard", "wandb", "tensorboard")
    assert asked == [["tensorboard", "wandb"]]
    assert [step for step, _ in recorder.logged] == [1, 2] and "train/loss" in recorder.logged[0][1]


def test_none_is_no_tracker():
    assert options().trackers == options("--report_to", "none").trackers == []
    with refused("--report_to none cannot be combined with trackers, got none tensorboard"):
        options("--report_to", "none", "tensorboard")


def test_wandb_needs_soundfile(monkeypatch):
    monkeypatch.setitem(arguments.TRACKERS, "wandb", lambda: True)
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with refused("--report_to wandb needs soundfile for validation audio: pip install soundfile"):
        options("--report_to", "wandb", "--validation_prompts", "prompts.jsonl")
    options("--report_to", "wandb")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[1]\n", b'{"promt": "rain"}\n', b'{"video": "gone.mp4"}\n'])
def test_validation_files_that_cannot_be_read(train, tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match="prompts.jsonl"):
        train("out", 1, "--validation_prompts", path, "--pretrained_model_name_or_path", "not loaded yet")


def test_compile_backend(monkeypatch):
    class Plugin:
        class backend:
            value = "NOWHERE"

        mode = None

    class Accelerator:
        device = "cpu"

        class state:
            dynamo_plugin = Plugin

    with refused("--dynamo_backend nowhere does not work here"):
        check_backend(Accelerator)
    Plugin.backend.value = "EAGER"
    check_backend(Accelerator)


def launch(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Start the training script in a process that reads the options, but has no model."""
    import os

    script = ["training/train_audiox.py", "--pretrained_model_name_or_path", "m", "--dataset", "d"]
    script += ["--output_dir", "/dev/null/out", "--max_train_steps", "1"]
    env = {**os.environ, **environment}
    return subprocess.run([*words, *script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)


def test_accelerate_that_starts_fewer_processes():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    result = launch(*command, "--num_processes", "2")
    assert "error: accelerate launch was asked for 2 processes, but has started one" in result.stderr


def test_a_world_size_without_a_launcher():
    result = launch(sys.executable, WORLD_SIZE="2")
    assert "error: WORLD_SIZE is 2, but this run has 1 process." in result.stderr
