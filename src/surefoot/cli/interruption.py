"""Ctrl-C and SIGTERM: the first asks a run to stop after its update, the second ends it at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from surefoot.errors import Stopped


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it, the yielded function says whether a signal has asked to stop. A second signal ends the process: with
    KeyboardInterrupt for Ctrl-C, with exit code 143 for SIGTERM; what was written until then is whole."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)
        asked.append(number)
        print("surefoot: stopping after this update; once more to end at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    except Stopped as stopped:
        raise Stopped(*stopped.args, *asked) from None  # the exit code says which signal it was
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
