"""A server in this process, on a free port of the loopback interface."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import torch
import uvicorn

from audiox_diffusers.generation.loading import Placement
from audiox_diffusers.serving.app import create_app
from audiox_diffusers.serving.engine import Engine
from audiox_diffusers.serving.limits import Limits
from audiox_diffusers.serving.models import Models


@dataclass
class LiveServer:
    """A running server, its engine, its folder of files, and a client with its address."""

    engine: Engine
    folder: Path
    url: str
    client: httpx2.Client


@contextmanager
def live_server(
    folder: Path,
    limits: Limits | None = None,
    token: str | None = None,
    models: tuple[str, ...] = ("audiox-tiny",),
    loras: tuple[str, ...] = (),
) -> Iterator[LiveServer]:
    """Serve models until the end of the block. The first model is loaded at the start."""
    limits = limits or Limits()
    engine = Engine(Models(list(models), list(loras), Placement(torch.device("cpu")), limits), folder, limits)
    config = uvicorn.Config(create_app(engine, token), port=0, log_level="warning", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    engine.start()
    thread.start()
    try:
        wait_until(lambda: server.started and engine.ready, seconds=60)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield LiveServer(engine, folder, url, client)
    finally:
        server.should_exit = True
        engine.close(grace_s=5)
        thread.join()


def wait_until(condition, seconds: float = 20.0) -> None:
    """Wait until a condition holds; fail after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)
