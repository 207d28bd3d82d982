"""What the picture and the page of a study draw: of each setting, training return and movement over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surefoot.calibration import column
from surefoot.errors import RunError
from surefoot.history import History, read
from surefoot.scores import interquartile_mean
from surefoot.study_record import FINISHED, Member, Row, StudyRecord

MOST_SETTINGS = 24
"""As many settings as one figure shows: those with the largest final return."""

_PLACES = 200  # along a curve; a figure has no room for more


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds.

    Attributes:
        middle: its interquartile mean, [places].
        lower: its first quartile.
        upper: its third quartile.
    """

    middle: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True)
class Curves:
    """How a setting's runs went, between the first and the last number of steps at which all of them have a return.

    Attributes:
        runs: how many they are.
        steps: [places].
        updates: how many updates had been made by then, the median over runs.
        returns: training return; between two updates in which an episode ended lies a straight line.
        kl: KL(old || new) of an update, in nats: over the updates since the place before, their mean.
    """

    runs: int
    steps: np.ndarray
    updates: np.ndarray
    returns: Spread
    kl: Spread


def curves_of(record: StudyRecord, members: Sequence[Member]) -> Curves | None:
    """The curves of some runs of a study; None where none of them recorded a return, or not at common steps."""
    found = [history for member in members if (history := _history(record, member)) is not None]
    low = max((_with_returns(history)[0][0] for history in found), default=0.0)
    high = min((_with_returns(history)[0][-1] for history in found), default=0.0)
    if not found or low > high:
        return None
    steps = np.linspace(low, high, min(_PLACES, max(len(history.rows) for history in found)))
    returns = [np.interp(steps, *_with_returns(history)) for history in found]
    updates = [_updates(history.column("steps"), steps) for history in found]
    moved = [_movement(history, steps) for history in found]
    return Curves(len(found), steps, np.median(updates, axis=0), _spread(returns), _spread(moved))


def shown_rows(record: StudyRecord) -> list[Row]:
    """The settings with a finished run, in their order; of more than a figure holds, those with the best return."""
    rows = [row for row in record.rows if row.value is not None]
    best = sorted(rows, key=lambda row: -float(row.value or 0))[:MOST_SETTINGS]
    return [row for row in rows if row in best]


def finished(record: StudyRecord, row: Row) -> list[Member]:
    """The finished runs of a setting."""
    return [member for member in record.of(row) if member.status == FINISHED]


def _history(record: StudyRecord, member: Member) -> History | None:
    """A run that has a return at some step; None of one that is gone, as the others still tell."""
    try:
        history = read(record.path / member.folder)
        return history if len(_with_returns(history)[0]) and np.isfinite(history.column("steps")).all() else None
    except RunError:
        return None


def _with_returns(history: History) -> tuple[np.ndarray, np.ndarray]:
    steps, returns = column(history, "steps"), column(history, "return_mean")
    known = np.isfinite(steps) & np.isfinite(returns)
    return steps[known], returns[known]


def _updates(at: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """How many updates had been made by then, to the nearest: seeds reach the same one at slightly different steps."""
    return np.round(np.interp(steps, at, np.arange(1, len(at) + 1))).astype(int)


def _movement(history: History, steps: np.ndarray) -> np.ndarray:
    """Mean KL of the updates in each stretch that ends at one of `steps`, so that a large one between is not missed."""
    at, kl = history.column("steps"), column(history, "kl")
    known = np.isfinite(kl)
    if not known.any():
        return np.full(len(steps), np.nan)
    at, kl = at[known], kl[known]
    ends = _updates(at, steps)
    starts = np.minimum(np.concatenate([[0], ends[:-1]]), ends - 1)  # a stretch without an update has that before it
    total = np.concatenate([[0.0], np.cumsum(kl)])
    return (total[ends] - total[starts]) / (ends - starts)


def _spread(values: Sequence[np.ndarray]) -> Spread:
    runs = np.stack(values)
    lower, upper = np.quantile(runs, [0.25, 0.75], axis=0)
    return Spread(interquartile_mean(runs.T[..., None]), lower, upper)
