"""`audiox serve`."""

import os
import socket
from argparse import Namespace


def run(args: Namespace) -> int:
    """Run `audiox serve` and return the exit code."""
    # Before the libraries are imported, which takes seconds.
    with _listen(args.host, args.port) as listener:
        try:
            from .server import run_server
        except ModuleNotFoundError as error:
            raise ValueError(f"audiox serve needs `pip install audiox-diffusers[serve]`: {error}") from None
        run_server(args, listener)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket of the server. Raise `ValueError` if the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"--host {host}: not a host name") from None
    except OSError as error:
        why = os.strerror(error.errno)
        raise ValueError(f"--port {port}: cannot listen on {host} ({why}); choose another with --port") from None
