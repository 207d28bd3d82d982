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
            share, noted = row["steps"] / self._total, "" if row["accepted"] else "update"
            self._live.update(_panel(self._title, share, self._facts(row), noted=noted))
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


def _panel(title: str, share: float, facts: list[tuple[str, str]], *, noted: str = "") -> Panel:
    """A bar and the facts; the one called `noted` stands out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts:
        table.add_row(name, f"[yellow]{value}[/]" if name == noted else value)
    rows = Table.grid(expand=True)
    rows.add_row(ProgressBar(total=1.0, completed=min(share, 1.0)))
    rows.add_row(table)
    return Panel(rows, title=title, title_align="left")


class Together:
    """Takes the rows of many runs that are made at once and shows how they stand together. A context."""

    def __init__(self, title: str, steps: int, count: int, *, shown: bool = True):
        """`steps` are those of each of the `count` runs."""
        self._title = title
        self._steps = steps
        self._count = count
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8) if self._console.is_terminal else None
        self._shown = shown
        self._rows: dict[str, dict[str, Any]] = {}
        self._returns: dict[str, float] = {}
        self._begun = time.monotonic()
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._shown and self._live:
            self._live.start()
            self._live.update(Panel("compiling", title=self._title, title_align="left"))
        return self

    def __exit__(self, *_: Any) -> None:
        if self._shown and self._live:
            self._live.stop()

    def show(self, run: str, row: dict[str, Any], returns: np.ndarray) -> None:
        """Show where the runs stand, now that the one named `run` has made an update."""
        self._rows[run] = row
        if len(returns):
            self._returns[run] = float(np.mean(returns))
        if not self._shown or (self._live is None and time.monotonic() - self._last_line < _SECONDS_BETWEEN_LINES):
            return
        facts = self._facts()
        if self._live:
            self._live.update(_panel(self._title, self._taken() / self._total, facts))
        else:
            self._last_line = time.monotonic()
            told = "  ".join(f"{name} {value}" for name, value in facts)
            print(f"{self._title}  {told}", file=sys.stderr, flush=True)

    @property
    def _total(self) -> int:
        return self._steps * self._count

    def _taken(self) -> int:
        return sum(min(row["steps"], self._steps) for row in self._rows.values())

    def _facts(self) -> list[tuple[str, str]]:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        share = self._taken() / self._total
        returns = list(self._returns.values())
        spread = "none ended yet"
        if returns:
            low, middle, high = np.quantile(returns, [0, 0.5, 1])
            spread = f"median {middle:.1f}, from {low:.1f} to {high:.1f} over {len(returns)} runs"
        refused = sum(not row["accepted"] for row in self._rows.values())
        return [
            ("steps", f"{self._taken():,} ({share:.0%})"),
            ("steps/s", f"{self._taken() / seconds:,.0f}"),
            ("left", _duration(seconds * (1 - share) / share) if share else "unknown"),
            ("return", spread),
            ("refused", f"{refused} of {len(self._rows)} last updates"),
        ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
