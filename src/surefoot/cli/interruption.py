"""Ctrl-C and SIGTERM: a run stops after its update at the first; the second, and the first elsewhere, end at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from surefoot.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def ended_by_signals(*, for_good: bool) -> Iterator[None]:
    """Within it a signal ends the process at once, with exit code 130 or 143; `for_good`, also after it."""
    with _handled_by(lambda number, frame: _end(number), for_good=for_good):
        yield


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it, the yielded function says whether a signal asked to stop; a second ends the process."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            _end(number)
        asked.append(number)
        _say(b"stopping after the update or evaluation under way; once more to end at once")

    with _handled_by(ask, for_good=False):
        try:
            yield lambda: bool(asked)
        except Stopped as stopped:
            raise Stopped(*stopped.args, *asked) from None  # the exit code says which signal it was


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Any], None], *, for_good: bool) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        if not for_good:
            for number, former in before.items():
                signal.signal(number, former)


def _end(number: int) -> None:
    """End the process. Every file is whole at every moment, so nothing has to be brought to an end first.

    An exception would be lost where the signal comes while JAX collects garbage, and the process would go on.
    """
    processes = sys.modules.get("multiprocessing")
    with contextlib.suppress(Exception):
        for child in processes.active_children() if processes else ():
            child.kill()
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    _say(b"stopped at once; what was written until then is whole")
    os._exit(128 + number)


def _say(line: bytes) -> None:
    # Not print: the signal may have come in the middle of one, which cannot be entered twice.
    with contextlib.suppress(OSError):
        os.write(2, b"surefoot: " + line + b"\n")
