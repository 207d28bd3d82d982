"""Interrupts an environment that does not come back, where Python can: in the main thread, by a timer's signal."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Self


class Overdue(BaseException):
    """An environment did not come back. No Exception, so that its own `except Exception` does not keep it."""


class Watch:
    """Within it, a call between `begin` and `end` that lasts longer than `seconds` is ended by Overdue.

    A timer ticks four times in `seconds` and looks whether the call is still the same, so a call costs two
    assignments, and one that hangs is ended after `seconds` to one and a half times that. Nothing is watched with
    `seconds` None, off the main thread, where there is no interval timer (Windows), or while somebody else's runs.
    Code that never returns to Python (a loop in C) cannot be ended. Whoever handled SIGALRM before does so again
    afterwards.

    Attributes:
        seconds: how long one call may take; None watches nothing.
    """

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self._calls = self._seen = 0
        self._inside = False
        self._since = 0.0
        self._before: Any = None
        self._depth = 0

    def __reduce__(self) -> tuple:
        # In another process it watches nothing yet.
        return Watch, (self.seconds,)

    def begin(self) -> None:
        """A call into an environment begins."""
        self._calls += 1
        self._inside = True

    def end(self) -> None:
        """It has come back."""
        self._inside = False

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and self.seconds is not None and _usable():
            self._before = signal.signal(signal.SIGALRM, self._tick)
            signal.setitimer(signal.ITIMER_REAL, self.seconds / 4, self.seconds / 4)
        return self

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
            self._before = None

    def _tick(self, *_: Any) -> None:
        if not self._inside:
            return
        now = time.monotonic()
        if self._seen != self._calls:
            self._seen, self._since = self._calls, now
        elif self.seconds is not None and now - self._since >= self.seconds:
            raise Overdue


def _usable() -> bool:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    # A handler that Python did not install could not be put back.
    return signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) is not None
