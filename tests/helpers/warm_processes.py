"""
`python` and `audiox` without the seconds that each needs to import the libraries.

A server imports them once. The programs that [`warm_programs`] writes ask it to fork, and the fork does
what the program would do: with the same arguments, folder and open files, and the program ends with its exit code.
A program that is started with other environment variables than the server, or with other options than `-c` and `-m`,
starts a new process as usual.
"""

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

BIN = Path(sys.executable).parent
SOCKET = "socket"
# Variables that a shell sets itself.
OF_SHELLS = ("_", "OLDPWD", "PWD", "SHLVL")


@contextlib.contextmanager
def warm_programs(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a server with the given environment variables, and put `python` and `audiox` into a new folder."""
    folder.mkdir()
    for name in ("python", "audiox"):
        # -I -S: a client uses only the standard library, and starts in hundredths of a second.
        words = [sys.executable, "-I", "-S", __file__, str(folder / SOCKET), str(BIN / name)]
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            env=environment,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def variables() -> dict[str, str]:
    """Return the environment, without what a shell adds to it."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in OF_SHELLS and not name.startswith("BASH_FUNC_")
    }


# The client


def ask(address: str, program: str, arguments: list[str]) -> int:
    """Let the server run a program, and return its exit code. Start the program itself if the server declines."""
    files = [number for number in map(int, os.listdir("/dev/fd")) if is_open(number)]
    request = {
        "arguments": [program, *arguments],
        "folder": os.getcwd(),
        "files": files,
        "variables": variables(),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"files"], files)
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = connection.makefile().readline()
    if answer == "declined\n":
        os.execv(program, [program, *arguments])
    return int(answer or 255)  # 255: it was killed


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # the file that listed the others
        return False
    return True


# The server


def serve(listener: socket.socket) -> None:
    import accelerate  # noqa: F401
    import peft  # noqa: F401

    from audiox_diffusers import pipelines

    for name in pipelines.__all__:
        getattr(pipelines, name)
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    gc.freeze()
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def answer(connection: socket.socket) -> None:
    """Run the program of a request in this process, send its exit code, and end the process."""
    _, files, _, _ = socket.recv_fds(connection, len(b"files"), 64)
    request = json.loads(connection.makefile().readline())
    program, *arguments = request["arguments"]
    if request["variables"] != variables() or not can_run(program, arguments):
        connection.sendall(b"declined\n")
        os._exit(0)
    os.chdir(request["folder"])
    # Above all numbers that the files are moved to.
    above = max(request["files"]) + 1
    connection = socket.socket(fileno=duplicate_above(connection.detach(), above))
    files = [duplicate_above(file, above) for file in files]
    for file, number in zip(files, request["files"]):
        os.dup2(file, number)
        os.close(file)
    code = run(program, arguments)
    connection.sendall(f"{code}\n".encode())
    os._exit(0)


def duplicate_above(file: int, above: int) -> int:
    duplicate = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above)
    os.close(file)
    return duplicate


def can_run(program: str, arguments: list[str]) -> bool:
    if Path(program).name != "python":
        return True
    return bool(arguments) and (arguments[0] in ("-c", "-m") or not arguments[0].startswith("-"))


def run(program: str, arguments: list[str]) -> int:
    """Do what a new process would do, up to and including its exit handlers."""
    try:
        start(program, arguments)
        code = 0
    except SystemExit as exit:
        code = exit.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return int(code or 0) & 0xFF


def start(program: str, arguments: list[str]) -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    assert sys.path[0] == folder
    if Path(program).name != "python":
        sys.argv = [program, *arguments]
        sys.path[0] = os.path.dirname(program)
        runpy.run_path(program, run_name="__main__")
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2], sys.argv[3:]))
