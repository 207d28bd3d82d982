"""A run's numbers as TensorBoard reads them, beside metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.errors import SettingError


class Scalars:
    """Writes every number of a metrics row to event files in the run's `tensorboard` folder, over environment steps.

    Raises SettingError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, since: int | None = None):
        """Write into the run's folder; what an earlier process wrote at `since` environment steps or later is void."""
        self._writer = writer_class()(logdir=str(folder / "tensorboard"), flush_secs=10, purge_step=since)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; what is no number is left out, and the bounds are written one by one."""
        bounds = {f"estimated_bounds/{name}": value for name, value in (row.get("estimated_bounds") or {}).items()}
        for name, value in (row | bounds).items():
            if isinstance(value, (bool, int, float)) and name != "steps":
                self._writer.add_scalar(name, float(value), row["steps"])

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()


def writer_class() -> Any:
    """TensorBoard's writer. Raises SettingError where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise SettingError(
            "tensorboard needs tensorboardX; install it with: pip install 'surefoot[tensorboard]'"
        ) from None
    return SummaryWriter
