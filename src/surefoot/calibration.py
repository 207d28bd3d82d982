"""How far a run's updates kept their promises, over the whole run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surefoot.history import History


@dataclass(frozen=True)
class Calibration:
    """Promised against realised, over the updates of a run; gains are differences of return.

    Attributes:
        updates: how many there were.
        judged: how many moved the policy, were not taken back and have a realised gain.
        promised: sum of their promised gains.
        realised: sum of their realised gains.
        ratio: realised / promised: 1 where the surrogate told the truth; None where nothing was promised.
        lowered: share of the updates with an interval whose realised gain is below 0 beyond it; None without any.
        left: share of the accepted updates that left the trust region; None where no radius in KL is in force.
        vacuous: share of the updates with an estimated bound for which even the best is vacuous; None without any.
    """

    updates: int
    judged: int
    promised: float
    realised: float
    ratio: float | None
    lowered: float | None
    left: float | None
    vacuous: float | None


LEFT = 1.01
"""An update has left the trust region whose KL exceeds this many radii: the solve's own rounding is below it."""


def calibrate(history: History) -> Calibration:
    """The calibration of a run. Metrics that it does not record count as null; updates that the guard took back
    kept no promise and broke none."""
    promised, realised, bounded = (column(history, name) for name in ("promised_gain", "realised_gain", "vacuous"))
    moved = column(history, "accepted") > 0
    judged = moved & kept(history) & np.isfinite(promised) & np.isfinite(realised)
    total, gained = float(promised[judged].sum()), float(realised[judged].sum())
    outside = left_region(history)
    return Calibration(
        updates=len(history.rows),
        judged=int(judged.sum()),
        promised=total,
        realised=gained,
        ratio=gained / total if total > 0 else None,
        lowered=_share(lowered(history)[measured(history)]),
        left=None if outside is None else _share(outside[moved]),
        vacuous=_share(bounded[np.isfinite(bounded)] > 0),
    )


def column(history: History, name: str) -> np.ndarray:
    """A metric over all updates, float64 [updates]; NaN where it is null or not recorded at all."""
    return history.column(name) if any(name in row for row in history.rows) else np.full(len(history.rows), np.nan)


def kept(history: History) -> np.ndarray:
    """Which updates the guard left in force, boolean [updates]."""
    return ~(column(history, "undone") > 0)


def refused(history: History) -> np.ndarray:
    """Which updates the rule refused, boolean [updates]; not those whose batch the guard left unused."""
    return (column(history, "accepted") == 0) & ~(column(history, "discarded") == 1)


def measured(history: History) -> np.ndarray:
    """Which updates moved the policy and have a realised gain with its interval, boolean [updates]."""
    names = ("accepted", "promised_gain", "realised_gain", "realised_gain_upper")
    columns = [column(history, name) for name in names]
    return (columns[0] > 0) & np.isfinite(columns).all(axis=0)


def lowered(history: History) -> np.ndarray:
    """Which updates lowered the return beyond noise, boolean [updates]; those that were taken back too."""
    return measured(history) & (column(history, "realised_gain_upper") < 0)


def left_region(history: History) -> np.ndarray | None:
    """Which accepted updates left the trust region, boolean [updates].

    In the divergence that the rule constrains. None where no radius in KL is in force.
    """
    settings = history.config.get("rule_settings")
    settings = settings if isinstance(settings, dict) else {}
    if history.config.get("trust_region") != "kl" or settings.get("eta") is not None:
        return None
    reverse = settings.get("divergence") == "reverse-kl"
    name = "max_kl" if settings.get("constraint") == "max" else "reverse_kl" if reverse else "kl"
    if reverse and name == "max_kl":
        return None  # the largest KL(new || old) is not recorded
    moved = column(history, "accepted") > 0
    return moved & (column(history, name) > LEFT * column(history, "radius"))


def _share(which: np.ndarray) -> float | None:
    return float(np.mean(which)) if which.size else None
