"""What a run shows while it runs: a live panel in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

_SECONDS_BETWEEN_LINES = 10.0
_RECENT_EPISODES = 100


class Progress:
    """Takes one metrics row an update and shows it. A context; writes to standard error only."""

    def __init__(self, title: str, steps: int, *, trust_region: str = "kl", shown: bool = True):
        self._title = title
        self._total = steps
        self._kl_radius = trust_region == "kl"
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8) if self._console.is_terminal else None
        self._shown = shown
        self._returns: deque[float] = deque(maxlen=_RECENT_EPISODES)
        self._refused = 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._shown and self._live:
            self._live.start()
            self._live.update(Panel("building the environments and compiling", title=self._title, title_align="left"))
        return self

    def __exit__(self, *_: Any) -> None:
        if self._shown and self._live:
            self._live.stop()

    def show(self, row: dict[str, Any], returns: np.ndarray) -> None:
        """Show an update's row; `returns` are those of the episodes that ended in it."""
        self._returns.extend(float(value) for value in returns)
        self._refused += not row["accepted"] and not row["discarded"]
        if not self._shown:
            return
        if self._live:
            self._live.update(self._panel(row))
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or row["steps"] >= self._total:
            self._last_line = time.monotonic()
            facts = "  ".join(f"{name} {value}" for name, value in self._facts(row))
            print(f"{self._title}  {facts}", file=sys.stderr, flush=True)

    def _facts(self, row: dict[str, Any]) -> list[tuple[str, str]]:
        share = min(1.0, row["steps"] / self._total)
        left = row["seconds"] * (1 - share) / share
        recent = "none ended yet"
        if self._returns:
            recent = f"{np.mean(self._returns):.1f} ± {np.std(self._returns):.1f} (last {len(self._returns)} episodes)"
        told = "accepted" if row["accepted"] else "refused"
        return [
            ("steps", f"{row['steps']:,} ({share:.0%})"),
            ("steps/s", f"{row['steps'] / row['seconds']:,.0f}"),
            ("left", _duration(left)),
            ("return", recent),
            ("KL", f"{row['kl']:.5f} of {row['radius']:g}" if self._kl_radius else f"{row['kl']:.5f}"),
            ("update", f"{row['update']} {told} ({self._refused} refused so far)"),
            ("explained variance", f"{row['explained_variance']:.2f}"),
        ]

    def _panel(self, row: dict[str, Any]) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        for name, value in self._facts(row):
            style = "yellow" if name == "update" and not row["accepted"] else ""
            table.add_row(name, f"[{style}]{value}[/]" if style else value)
        bar = ProgressBar(total=self._total, completed=min(row["steps"], self._total))
        rows = Table.grid(expand=True)
        rows.add_row(bar)
        rows.add_row(table)
        return Panel(rows, title=self._title, title_align="left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
