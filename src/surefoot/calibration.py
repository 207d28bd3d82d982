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
        judged: how many moved the policy and have a realised gain.
        promised: sum of their promised gains.
        realised: sum of their realised gains.
        ratio: realised / promised: 1 where the surrogate told the truth; None where nothing was promised.
        lowered: share of the updates with an interval whose realised gain is below 0 beyond it; None without any.
        left: share of the accepted updates whose KL exceeds 1.01 times the radius that was in force; None for rules
            without a KL radius.
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


def calibrate(history: History) -> Calibration:
    """The calibration of a run. Metrics that it does not record count as null."""
    rows = history.rows

    def column(name: str) -> np.ndarray:
        return history.column(name) if any(name in row for row in rows) else np.full(len(rows), np.nan)

    promised, realised, upper = column("promised_gain"), column("realised_gain"), column("realised_gain_upper")
    accepted = column("accepted") > 0
    judged = accepted & np.isfinite(promised) & np.isfinite(realised)
    known = judged & np.isfinite(upper)
    total, gained = float(promised[judged].sum()), float(realised[judged].sum())
    bounded = column("vacuous")
    return Calibration(
        updates=len(rows),
        judged=int(judged.sum()),
        promised=total,
        realised=gained,
        ratio=gained / total if total > 0 else None,
        lowered=_share(upper[known] < 0),
        left=_share(column("kl")[accepted] > 1.01 * column("radius")[accepted]) if _has_radius(history) else None,
        vacuous=_share(bounded[np.isfinite(bounded)] > 0),
    )


def _has_radius(history: History) -> bool:
    return history.config.get("trust_region") == "kl"


def _share(which: np.ndarray) -> float | None:
    return float(np.mean(which)) if which.size else None
