"""`audiox serve`."""

import os
import socket
import threading
import time
from argparse import Namespace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from ..atomic import scratch
from ..generation.loading import check_model, read_placement
from .quiet import quiet_libraries
from .terminal import say

# Seconds that running jobs get after a signal.
GRACE = 10.0
# Seconds that responses get after the last job.
LINGER = 3.0


def run(args: Namespace) -> int:
    """Run `audiox serve` and return the exit code."""
    listener = _listen(args.host, args.port)
    for model in args.model:
        check_model(model)
    with listener, quiet_libraries(), scratch(Path(gettempdir()) / "serve") as folder:
        folder.mkdir(mode=0o700)
        # Read when Gradio is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
        try:
            import prometheus_client  # noqa: F401
            import python_multipart  # noqa: F401
            import uvicorn

            from ..serving.app import create_app
        except ModuleNotFoundError as error:
            raise ValueError(f"audiox serve needs `pip install audiox-diffusers[serve]`: {error}") from None
        from ..serving.engine import Engine
        from ..serving.limits import Limits
        from ..serving.models import Models

        limits = Limits(
            max_queue=args.max_queue,
            max_batch=args.max_batch,
            max_upload_bytes=round(args.max_upload * 2**20),
            max_length_s=args.max_length,
            max_steps=args.max_steps,
            idle_unload_s=args.idle_unload,
            max_memory_bytes=None if args.max_memory is None else round(args.max_memory * 1e9),
        )
        models = Models(args.model, args.lora or [], read_placement(args), limits)
        engine = Engine(models, folder, limits)
        app = create_app(engine, args.token or os.environ.get("AUDIOX_TOKEN") or None, hosts=(args.host,))

        class Server(uvicorn.Server):
            def handle_exit(self, number: int, frame: Any) -> None:
                # In another thread, because this one may hold the locks of the engine.
                threading.Thread(target=self.leave, daemon=True).start()
                super().handle_exit(number, frame)

            def leave(self) -> None:
                """End the jobs, which uvicorn waits for, and some seconds later all connections that are still open."""
                engine.begin_shutdown(grace_s=GRACE)
                engine.join(2 * GRACE)
                time.sleep(LINGER)
                self.force_exit = True

            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                host, port = listener.getsockname()[:2]
                say(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")

        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
        )
        try:
            engine.start()
            Server(config).run([listener])
        finally:
            engine.close(GRACE)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket of the server, before anything takes long. `ValueError` if the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}") from None
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: cannot listen on {host} ({error.strerror})") from None
