"""Stop a command on Ctrl-C and on the signals that end processes, without leaving files behind."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from .atomic import remove_unfinished

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Seconds until the exception is raised again.
_AGAIN = 0.25


def run_interruptible(action: Callable[[], int]) -> int:
    """
    Run `action` so that SIGINT, SIGTERM and SIGHUP stop it with a `KeyboardInterrupt`.

    Python ignores an exception in a destructor, and libraries may swallow it too, so it is raised again until the
    action ends. Temporary files and folders of `atomic` are removed then. Signals that are ignored, as
    under `nohup`, stay ignored.

    Args:
        action (`Callable`): What to run; returns an exit code.

    Returns:
        `int`: The exit code of the action, or 128 plus the number of the signal.
    """
    stop = _Stop()
    with stop:
        code = action()
    if stop.number is None:
        return code
    remove_unfinished()
    print("audiox: interrupted" if stop.number == signal.SIGINT else "audiox: terminated", file=sys.stderr)
    return 128 + stop.number


class _Stop:
    """Turns signals into exceptions while it is entered, and suppresses what they cause."""

    number: int | None = None
    ended = False

    def __enter__(self) -> None:
        self.handlers: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # Only the main thread can have handlers.
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self.handlers[number] = signal.signal(number, self.handle)
        self.hook, sys.unraisablehook = sys.unraisablehook, self.ignored

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> bool:
        self.ended = True
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.number is None:
            self.number = signal.SIGINT
        if self.handlers:
            if self.number is not None:
                self.raise_again(0)
            sys.unraisablehook = self.hook
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
        return self.number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.ended:
            return
        if self.number is None:
            self.number = number
        self.raise_again(_AGAIN)
        raise KeyboardInterrupt

    def ignored(self, unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt) and self.number is not None:
            self.raise_again(0.01)
        else:
            self.hook(unraisable)

    def raise_again(self, seconds: float) -> None:
        if hasattr(signal, "setitimer"):
            self.handlers.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self.handle))
            signal.setitimer(signal.ITIMER_REAL, seconds)
