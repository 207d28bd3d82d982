"""From values to places on an axis, and which updates to draw where there are more than can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FEW = 1_000
"""So many updates are drawn one by one."""
STRETCHES = 160
"""Of more updates, those that are drawn come from so many stretches of equal length."""

_FARTHEST = 1e100
"""What is larger is drawn there, so that no sum or square on the way overflows."""


@dataclass(frozen=True)
class Scale:
    """A vertical axis.

    Attributes:
        low: the value at its bottom.
        high: the value at its top.
        linear: the size up to which values are spaced evenly, larger ones as their logarithms; inf: all evenly.
    """

    low: float
    high: float
    linear: float = math.inf

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where values lie, 0 at the bottom and 1 at the top."""
        low, high = self._bent(np.array([self.low, self.high]))
        return (self._bent(np.clip(np.asarray(values, np.float64), -_FARTHEST, _FARTHEST)) - low) / (high - low)

    def ticks(self, room: int = 4) -> list[float]:
        """Round values inside, about `room` of them, far enough from one another for their labels."""
        if math.isinf(self.linear):
            return even_ticks(self.low, self.high, room)
        largest = max(abs(self.low), abs(self.high))
        powers = range(math.floor(math.log10(largest)), math.floor(math.log10(self.linear)) - 2, -1)
        chosen: list[float] = []
        places: list[float] = []
        # Zero first, then the powers of ten from the ends inwards.
        for value in [0.0, *(sign * 10.0**power for power in powers for sign in (1, -1))]:
            place = float(self.place(np.array(value)))
            if 0 <= place <= 1 and all(abs(place - other) >= 0.6 / room for other in places):
                chosen.append(value)
                places.append(place)
        return sorted(chosen)

    def _bent(self, values: np.ndarray) -> np.ndarray:
        return values if math.isinf(self.linear) else np.arcsinh(values / self.linear)


def even_ticks(low: float, high: float, room: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, about `room` of them."""
    rough = (high - low) / room
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def fit(values: np.ndarray, *, wide: bool = False) -> Scale:
    """An axis that shows all finite values.

    Args:
        values: of any shape; what is not finite is left out.
        wide: bend the axis where a few values lie so far off that the others could not be told apart.
    """
    finite = np.clip(values[np.isfinite(values)], -_FARTHEST, _FARTHEST)
    if not finite.size:
        return Scale(0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    linear = _bend(finite) if wide else math.inf
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        around = abs(high) * 0.1 or 1.0
        return Scale(low - around, high + around)
    if math.isinf(linear):
        margin = 0.05 * (high - low)
        # What is never negative and comes near to zero begins there.
        return Scale(0.0 if 0 <= low <= 0.3 * high else low - margin, high + margin)
    ends = np.arcsinh(np.array([low, high]) / linear)
    margin = 0.05 * float(ends[1] - ends[0])
    bottom, top = linear * np.sinh(ends + np.array([-margin, margin]))
    return Scale(0.0 if low == 0 else float(bottom), float(top), linear)


def _bend(finite: np.ndarray) -> float:
    sizes = np.maximum(np.abs(finite[finite != 0]), 1 / _FARTHEST)
    if not sizes.size:
        return math.inf
    usual = float(np.quantile(sizes, 0.8))
    if sizes.max() > 8 * usual:
        return usual
    # Sizes all the way from small to large: no size is usual.
    small = float(np.quantile(sizes, 0.1))
    return small if usual > 100 * small else math.inf


def kept(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Which updates to draw: all, or of each stretch the first and where any column is least and largest.

    Args:
        columns: [updates] each; what is not finite is neither least nor largest.

    Returns: their places in ascending order; the first and the last update are always among them.
    """
    updates = len(columns[0])
    if updates <= FEW:
        return np.arange(updates)
    edges = np.linspace(0, updates, STRETCHES + 1).astype(int)
    found = {0, updates - 1, *edges[:-1].tolist()}
    for column in columns:
        for start, stop in pairwise(edges):
            stretch = column[start:stop]
            if np.isfinite(stretch).any():
                found.add(int(start + np.argmin(np.where(np.isfinite(stretch), stretch, np.inf))))
                found.add(int(start + np.argmax(np.where(np.isfinite(stretch), stretch, -np.inf))))
    return np.array(sorted(found))
