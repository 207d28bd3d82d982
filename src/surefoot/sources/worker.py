"""What the process of one asynchronous environment runs. Imports nothing slow."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
from gymnasium.vector.async_vector_env import _async_worker

from surefoot.errors import EnvironmentFault, SurefootError
from surefoot.sources.guard import line


def work(
    index: int, make: Callable[[], gymnasium.Env], pipe: Connection, parent_pipe: Connection, *shared: Any
) -> None:
    """Gymnasium's own worker, but for two things: an environment that cannot be made is told as a fault instead of
    printed, and signals that are sent to every process, as a terminal's Ctrl-C is, are left to the trainer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        env = make()
    except BaseException as error:
        parent_pipe.close()
        pipe.recv()  # whatever is asked first
        kind = type(error) if isinstance(error, SurefootError) else EnvironmentFault
        told = str(error) if isinstance(error, SurefootError) else line(error)
        errors = shared[1]
        errors.put((index, kind, told, ""))
        pipe.send((None, False))
        return
    _async_worker(index, lambda: env, pipe, parent_pipe, *shared)
