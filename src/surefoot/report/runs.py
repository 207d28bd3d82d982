"""What the report's drawings and tables read: a run with its mark, and numbers for reading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from surefoot.calibration import Calibration, calibrate, column, left_region, lowered, measured, refused
from surefoot.doctor import Examination, examine
from surefoot.history import History

COLOURS = ("blue", "orange", "green", "violet", "red", "teal")
DASHES = ("", "7 4", "2 3", "11 4 2 4", "5 2")
"""Patterns of lines. Their number and the colours' have no common factor: 30 runs differ in the pair."""

MISSING = "\N{EN DASH}"
"""Stands where there is no value."""

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        history: what it recorded.
        place: its place in the report, from 0.
        mark: its letter, or nothing where the report has one run.
        name: what it is called.
    """

    history: History
    place: int
    mark: str
    name: str

    @property
    def colour(self) -> str:
        """The name of its colour on the page."""
        return COLOURS[self.place % len(COLOURS)]

    @property
    def dash(self) -> str:
        """The pattern of its lines."""
        return DASHES[self.place % len(DASHES)]

    @property
    def updates(self) -> int:
        """How many updates it recorded."""
        return len(self.history.rows)

    def setting(self, name: str) -> str:
        """A setting of the run as text; "not recorded" where it has none of that name."""
        value = self.history.config.get(name)
        return "not recorded" if value is None else str(value)

    def column(self, key: str) -> np.ndarray:
        """A metric over all updates, float64 [updates]; NaN where it is null and where the run does not know it.

        Raises RunError where it holds something else than numbers.
        """
        return column(self.history, key)

    def evaluated_at_updates(self, key: str) -> np.ndarray:
        """A number of the evaluations made while the run learned, float64 [updates]; NaN where none was made.

        Raises RunError where one holds something else than numbers.
        """
        found = dict(zip(self.history.evaluated("update").tolist(), self.history.evaluated(key).tolist(), strict=True))
        return np.array([found.get(update, math.nan) for update in self.number.tolist()], np.float64)

    def words(self, key: str) -> list[str]:
        """The texts that a metric held, in the order of the updates, nulls left out."""
        return [str(row[key]) for row in self.history.rows if row.get(key) is not None]

    def not_finite(self, key: str) -> np.ndarray:
        """Where a number was recorded that is not finite, boolean [updates]. Null is no number."""
        return np.array([isinstance(row.get(key), str) for row in self.history.rows], bool)

    def is_set(self, key: str) -> np.ndarray:
        """Where a metric is true, boolean [updates]."""
        return self.column(key) == 1

    @cached_property
    def refused(self) -> np.ndarray:
        """Which updates the rule refused, boolean [updates]; not those whose batch the guard left unused."""
        return refused(self.history)

    @cached_property
    def number(self) -> np.ndarray:
        """The updates' numbers, [updates]."""
        recorded = self.column("update")
        return recorded if countable(recorded) else np.arange(1.0, self.updates + 1)

    @cached_property
    def measured(self) -> np.ndarray:
        """Which updates moved the policy and have a realised gain with its interval, boolean [updates]."""
        return measured(self.history)

    @cached_property
    def lowered(self) -> np.ndarray:
        """Which updates lowered the return beyond noise, boolean [updates]."""
        return lowered(self.history)

    @cached_property
    def outside(self) -> np.ndarray | None:
        """Which updates left the trust region, boolean [updates]; None where it is not one of the KL."""
        return left_region(self.history)

    @cached_property
    def calibration(self) -> Calibration:
        """How far its updates kept their promises."""
        return calibrate(self.history)

    @cached_property
    def examination(self) -> Examination:
        """What the doctor says of it."""
        return examine(self.history)

    @property
    def evaluated(self) -> dict[str, Any] | None:
        """The return of the final evaluation; None where the run has none."""
        found = (self.history.evaluation or {}).get("return")
        return found if isinstance(found, dict) else None


def countable(values: np.ndarray) -> bool:
    """Whether all of these can be numbers of updates or steps: finite, and not so large that the next one is equal."""
    return bool((np.abs(values) < 2.0**53).all())


def letters(count: int) -> list[str]:
    """The marks of so many runs: A, B, …, Z, A2, …; an empty one for a run alone."""
    if count == 1:
        return [""]
    return [chr(65 + place % 26) + (str(place // 26 + 1) if place >= 26 else "") for place in range(count)]


def number(value: Any, digits: int = 3) -> str:
    """A number for reading: `digits` significant figures, a power of ten where it is very small or has more places."""
    value = math.nan if value is None else float(value)
    if not math.isfinite(value):
        return MISSING if math.isnan(value) else "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    if -4 <= exponent < max(digits, 7):
        text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
    else:
        text = f"{value:.{digits - 1}e}".split("e")[0].rstrip("0").rstrip(".")
        text += f"·10{str(exponent).translate(_SUPERSCRIPT)}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\u202f")


def count(how_many: int, one: str, more: str = "") -> str:
    """`1 update`, `2 updates`."""
    return f"{number(how_many, 7)} {one if how_many == 1 else more or one + 's'}"


def share(part: int, whole: int) -> str:
    """A share in per cent. What is neither none nor all is never rounded to it."""
    if whole == 0:
        return MISSING
    percent = 100 * part / whole
    if 0 < part < whole:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f}".removesuffix(".0") + "\u202f%"


def last(values: np.ndarray) -> float:
    """The last number that is one; NaN if none is."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else math.nan


def first(values: np.ndarray) -> float:
    """The first number that is one; NaN if none is."""
    return last(values[::-1])


def median(values: np.ndarray) -> float:
    """The median of the finite numbers; NaN if there is none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan
