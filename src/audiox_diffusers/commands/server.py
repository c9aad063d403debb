"""The process of `audiox serve`: an engine, and a web server in front of it."""

import os
import socket
import threading
import time
from argparse import Namespace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import prometheus_client  # noqa: F401
import python_multipart  # noqa: F401
import uvicorn

from ..atomic import scratch
from ..generation.loading import check_model, read_placement
from ..serving.app import create_app
from ..serving.engine import Engine
from ..serving.errors import ServingError
from ..serving.limits import Limits
from ..serving.models import Models
from .quiet import quiet_libraries
from .terminal import say

# Seconds that running jobs get after a signal.
GRACE = 10.0
# Seconds that responses get after the last job.
LINGER = 3.0


def run_server(args: Namespace, listener: socket.socket) -> None:
    """
    Serve until a signal.

    Args:
        args (`Namespace`): Arguments of `audiox serve`.
        listener (`socket.socket`): Socket to accept connections from.

    Raises:
        ValueError, OSError: A model is damaged or does not exist, or the first one is larger than `--max-memory`.
    """
    for model in args.model:
        check_model(model)
    with quiet_libraries(), scratch(Path(gettempdir()) / "serve") as folder:
        folder.mkdir(mode=0o700)
        # Read when Gradio is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
        limits = _limits(args)
        engine = Engine(Models(args.model, args.lora or [], read_placement(args), limits), folder, limits)
        app = create_app(engine, args.token or os.environ.get("AUDIOX_TOKEN") or None, hosts=(args.host,))
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15)
        try:
            engine.start()
            _Server(config, engine).run([listener])
        finally:
            engine.close(GRACE)
        if isinstance(engine.startup_error, ServingError):
            raise ValueError(engine.startup_error.message)
        if engine.startup_error is not None:
            raise engine.startup_error


def _limits(args: Namespace) -> Limits:
    return Limits(
        max_queue=args.max_queue,
        max_batch=args.max_batch,
        max_upload_bytes=round(args.max_upload * 2**20),
        max_length_s=args.max_length,
        max_steps=args.max_steps,
        idle_unload_s=args.idle_unload,
        max_memory_bytes=None if args.max_memory is None else round(args.max_memory * 1e9),
    )


class _Server(uvicorn.Server):
    """A web server that ends the jobs of an engine when it stops, and stops if the first model cannot be loaded."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        say(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        if self.engine.startup_error is not None and not self.should_exit:
            self.should_exit = True
            self._begin_leaving()
        return await super().on_tick(counter)

    def handle_exit(self, number: int, frame: Any) -> None:
        self._begin_leaving()
        super().handle_exit(number, frame)

    def _begin_leaving(self) -> None:
        # In another thread, because this one may hold the locks of the engine.
        threading.Thread(target=self._leave, daemon=True).start()

    def _leave(self) -> None:
        """End the jobs, which uvicorn waits for, and some seconds later all connections that are still open."""
        self.engine.begin_shutdown(grace_s=GRACE)
        self.engine.join(2 * GRACE)
        time.sleep(LINGER)
        self.force_exit = True
