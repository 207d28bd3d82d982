"""Ctrl-C and SIGTERM: the first asks a run to stop after its update, the second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from surefoot.errors import Stopped


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it, the yielded function says whether a signal has asked to stop. A second signal ends the process: with
    KeyboardInterrupt for Ctrl-C, with exit code 143 for SIGTERM; what was written until then is whole."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)
        asked.append(number)
        # Not print: the signal may have come in the middle of one, which cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, b"surefoot: stopping after the update or evaluation under way; once more to end at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    except Stopped as stopped:
        raise Stopped(*stopped.args, *asked) from None  # the exit code says which signal it was
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
