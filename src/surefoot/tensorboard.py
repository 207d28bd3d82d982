"""A run's numbers as TensorBoard reads them, beside metrics.jsonl."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from surefoot.errors import SettingError

_SECONDS_BETWEEN_FLUSHES = 10.0


class Scalars:
    """Writes every number of a metrics row to event files in the run's `tensorboard` folder, over environment steps.

    They are a copy of metrics.jsonl: where they cannot be written, `told` is given a line and the run goes on without.
    Raises SettingError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, told: Callable[[str], None], since: int | None = None):
        """Write into the run's folder; what an earlier process wrote at `since` environment steps or later is void."""
        self._folder, self._told = folder / "tensorboard", told
        self._writer: Any = None
        self._flushed = time.monotonic()
        # Not tensorboardX's SummaryWriter: its thread dies of a full disk, and what is written then waits without end.
        make = writer_class()
        with self._given_up_where_refused():
            self._folder.mkdir(exist_ok=True)
            self._writer = make(str(self._folder / "events"), f".{os.getpid()}")
            if since is not None:
                self._write(step=since, session_log={"status": "START"})

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; what is no number is left out, and the bounds are written one by one."""
        bounds = {f"estimated_bounds/{name}": value for name, value in (row.get("estimated_bounds") or {}).items()}
        scalars = [
            {"tag": name, "simple_value": float(value)}
            for name, value in (row | bounds).items()
            if isinstance(value, (bool, int, float)) and name != "steps"
        ]
        with self._given_up_where_refused():
            self._write(step=row["steps"], summary={"value": scalars})
            if self._writer and time.monotonic() - self._flushed >= _SECONDS_BETWEEN_FLUSHES:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Write out what is left."""
        with self._given_up_where_refused():
            if self._writer:
                self._writer.close()

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer:
            self._writer.write_event(Event(wall_time=time.time(), **event))

    @contextmanager
    def _given_up_where_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            if writer:
                with suppress(OSError):
                    writer.close()
            self._told(f"{self._folder} cannot be written: {error.strerror or error}; the run goes on without it")


def writer_class() -> Any:
    """TensorBoard's writer of event files. Raises SettingError where tensorboardX is not installed."""
    try:
        from tensorboardX import event_file_writer
    except ImportError:
        raise SettingError(
            "tensorboard needs tensorboardX; install it with: pip install 'surefoot[tensorboard]'"
        ) from None
    return event_file_writer.EventsWriter
