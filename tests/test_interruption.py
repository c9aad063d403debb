"""Commands stop on signals wherever they are, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from audiox_diffusers.atomic import replacing
from audiox_diffusers.cli import main
from audiox_diffusers.interruption import run_interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(1000):  # The exception comes between two of these.
        pass


class Destroyed:
    def __init__(self, number: int):
        self.number = number

    def __del__(self):
        send(self.number)


class Nothing:
    pass


def in_a_destructor(number: int) -> None:
    Destroyed(number)


def in_a_callback_of_a_reference(number: int) -> None:
    thing = Nothing()
    reference = weakref.ref(thing, lambda _: send(number))
    del thing
    assert reference() is None


def in_a_bare_except(number: int) -> None:
    try:
        send(number)
    except:  # noqa: E722
        pass


def turned_into_another_error(number: int) -> None:
    try:
        send(number)
    except KeyboardInterrupt:
        raise ImportError("cannot be initialized") from None


def in_a_comparison_of_a_sort(number: int) -> None:
    sorted([2, 1], key=lambda value: send(number))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "swallow",
    [
        in_a_destructor,
        in_a_callback_of_a_reference,
        in_a_bare_except,
        turned_into_another_error,
        in_a_comparison_of_a_sort,
    ],
)
def test_a_swallowed_signal_stops_the_action(swallow, number, capsys):
    def action() -> int:
        swallow(number)
        time.sleep(10)
        return 0

    before, hook = [signal.getsignal(each) for each in (*SIGNALS, signal.SIGALRM)], sys.unraisablehook
    start = time.perf_counter()
    assert run_interruptible(action) == 128 + number
    assert time.perf_counter() - start < 5
    assert "audiox: " in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (*SIGNALS, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and sys.unraisablehook is hook


def test_ignored_signals_stay_ignored():
    """As under nohup, and for background jobs of a script."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_interruptible(lambda: send(signal.SIGHUP) or 5) == 5
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_other_errors_and_exit_codes_pass_through():
    assert run_interruptible(lambda: 2) == 2
    with pytest.raises(ZeroDivisionError):
        run_interruptible(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        run_interruptible(sys.exit)


def test_in_another_thread():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_interruptible(lambda: 3)))
    thread.start()
    thread.join()
    assert codes == [3]


@pytest.mark.parametrize("number", SIGNALS)
def test_temporaries_are_removed_although_their_removal_is_interrupted(tmp_path, number, monkeypatch):
    remove = []

    def interrupted_remove(path: Path) -> None:
        remove.append(path)
        if len(remove) == 1:
            raise KeyboardInterrupt
        path.unlink(missing_ok=True)

    def action() -> int:
        with replacing(tmp_path / "x.wav") as temporary:
            temporary.write_text("half")
            send(number)
        return 0

    monkeypatch.setattr("audiox_diffusers.atomic.remove", interrupted_remove)
    assert run_interruptible(action) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_reports_an_interruption(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiox_diffusers.commands.demo.run", interrupt)
    assert main(["demo", "--output", "demo"]) == 130
    assert capsys.readouterr().err == "audiox: interrupted\n"


LONG = ["generate", "--prompt", "rain", "--steps", "1", "--length", "240", "-o"]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", ["importing", "writing"])
def test_a_process_is_stopped(tmp_path, number, moment):
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-v", "-m", "audiox_diffusers", *LONG, str(tmp_path / "out" / "x.flac")]
    if moment == "writing":
        command.remove("-v")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    if moment == "importing":
        # With -v, Python reports its imports.
        while "import 'torch" not in process.stderr.readline():
            assert process.poll() is None
    else:
        while not list((tmp_path / "out").iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1].startswith("audiox: ") if moment == "writing" else "audiox: " in said
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
