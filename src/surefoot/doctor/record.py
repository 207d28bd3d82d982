"""A run's history as the checks read it: columns that may be missing, shares of updates, numbers in words."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from surefoot.history import History

FEWEST_UPDATES = 10
"""Fewer updates than these are too few for any check of shares and medians."""


class Unjudged(Exception):
    """Internal: the record does not hold what a check needs. Its message says what is missing."""


class Record:
    """A run's history, for reading with doubt.

    Attributes:
        history: as it was read.
        updates: how many there were.
    """

    def __init__(self, history: History):
        """A record of this history."""
        self.history = history
        self.updates = len(history.rows)

    def __getitem__(self, key: str) -> np.ndarray:
        """A metric, float64 [updates], NaN where it is null. Raises Unjudged where no update has the key."""
        if key not in self:
            raise Unjudged(f"the run records no {key}")
        return self.history.column(key)

    def __contains__(self, key: str) -> bool:
        """Whether any update has the key."""
        return any(key in row for row in self.history.rows)

    def setting(self, name: str) -> Any:
        """A setting of the run or of its rule; None where neither has it."""
        rule = self.history.config.get("rule_settings")
        inner = rule.get(name) if isinstance(rule, dict) else None
        return self.history.config.get(name, inner)

    def enough(self, mask: np.ndarray | None = None, of: str = "updates") -> None:
        """Raise Unjudged where fewer than ten updates (or of those in `mask`) are there to be judged."""
        count = self.updates if mask is None else int(np.sum(mask))
        if count < FEWEST_UPDATES:
            raise Unjudged(f"too short to judge: {count} {of}, and {FEWEST_UPDATES} are needed")

    @cached_property
    def number(self) -> np.ndarray:
        """The number of each update, [updates], counted where the record does not tell it."""
        counted = np.arange(1, self.updates + 1)
        if "update" not in self:
            return counted
        told = self["update"]
        return np.where(np.isfinite(told), np.nan_to_num(told, posinf=0, neginf=0), counted).astype(int)

    @property
    def accepted(self) -> np.ndarray:
        """Which updates changed the policy, bool [updates]."""
        return self["accepted"] > 0

    def last_half(self, key: str) -> np.ndarray:
        """The finite values of a metric in the last half of the run. Raises Unjudged with fewer than five."""
        self.enough()
        values = self[key][self.updates // 2 :]
        values = values[np.isfinite(values)]
        if len(values) < FEWEST_UPDATES // 2:
            raise Unjudged(f"too few updates of the last half record a {key}")
        return values

    def named(self, mask: np.ndarray, most: int = 4) -> str:
        """`12 of 98 updates (3, 4, 7, 9 and others)`: the updates where `mask`, the first of them by number."""
        numbers = [str(number) for number in self.number[mask]]
        listed = ", ".join(numbers[:most]) + (" and others" if len(numbers) > most else "")
        return f"{len(numbers)} of {self.updates} updates" + (f" ({listed})" if numbers else "")


def plain(value: float) -> str:
    """A number as evidence shows it: three digits."""
    return str(value) if not math.isfinite(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def share(part: Any, whole: Any) -> str:
    """`40 %`."""
    return f"{100 * int(part) / max(int(whole), 1):.0f} %"
