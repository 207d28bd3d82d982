"""Checks on the policy and its return: spread that is gone, actions cut off, returns that fell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surefoot.doctor.finding import Check, Seen
from surefoot.doctor.record import Record, Unjudged, plain

_SMALLEST_STD = 0.02
_STD_FALL = 20.0
_ENTROPY_LEFT = 0.02  # solved CartPole keeps a tenth
_MISSED = 0.1  # of the rise from the first return to the best episode
# Half the coordinates cut off is ordinary for good policies of Walker2d and HalfCheetah, whose torques are all or none.
_SATURATED = 0.7
_FALL = 0.5  # of the range; healthy Hopper runs fall by up to 0.41 of theirs
_FALL_ERRORS = 4.0
_FALL_SPREADS = 0.5
_JUMP = 3.0  # times the median update
_STILL_GOOD = 0.2  # of the rise to the best, or of the fall from it if that is smaller
_LONG = 0.1  # nats; two and a half times TRPO's first radius


def policy_collapsed(record: Record) -> Seen | None:
    """Whether the policy became deterministic before it was any good.

    A good policy may well be deterministic. A collapse shows in that the policy no longer reaches what single
    episodes reached while it still explored, or that it is no better than at the start.
    """
    record.enough()
    gone, said = _spread_gone(record)
    best, mean = record["return_max"], record["return_mean"]
    spread = np.flatnonzero(~gone)
    began = int(spread[-1]) + 1 if len(spread) else 0  # it stayed so to the end
    # The update's own batch was still played by the policy before it.
    before, after = slice(0, began + 1), slice(began + 1, None)
    reached, known = best[before][np.isfinite(best[before])], mean[before][np.isfinite(mean[before])]
    since, later = best[after][np.isfinite(best[after])], mean[after][np.isfinite(mean[after])]
    if min(len(reached), len(known), len(since), len(later)) == 0:
        return None
    start, high, higher = float(known[0]), float(np.max(reached)), float(np.max(since))
    missed = higher < high - _MISSED * (high - start)
    if not missed and np.mean(later) > start:
        return None
    return Seen(
        f"{said} from update {record.number[began]} of {record.updates} on; until then episodes reached "
        f"{plain(high)}, since then none is above {plain(higher)} and the mean is {plain(float(np.mean(later)))} "
        f"({plain(start)} at the start)"
    )


def _spread_gone(record: Record) -> tuple[np.ndarray, str]:
    """After which updates the policy hardly varied, and how that is said."""
    std = record["smallest_std"]
    known = std[np.isfinite(std)]
    if len(known):
        gone = (std < _SMALLEST_STD) | (std < known[0] / _STD_FALL)
        return gone, f"the smallest standard deviation fell from {plain(known[0])} to {plain(known[-1])}, too small"
    entropy = record["entropy"]
    known = entropy[np.isfinite(entropy)]
    if len(known) == 0 or known[0] <= 0:
        raise Unjudged("the policy had no entropy to lose")
    said = f"the entropy fell from {plain(known[0])} to {plain(known[-1])} nats, next to nothing"
    return entropy < _ENTROPY_LEFT * known[0], said


def saturation(record: Record) -> Seen | None:
    """Whether most sampled actions lie outside the bounds."""
    cut = float(np.median(record.last_half("action_saturation")))
    if cut <= _SATURATED:
        return None
    return Seen(f"{100 * cut:.0f} % of the action coordinates are cut off (median of the last half)")


@dataclass(frozen=True)
class _Returns:
    """Mean returns of the updates in which episodes ended, [K], with the rows that they stand in.

    A window's mean weights its updates by their episodes.
    """

    row: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    episodes: np.ndarray

    @property
    def width(self) -> int:
        """How many of them a window takes."""
        return max(3, len(self.row) // 20)

    def over(self, last: int) -> tuple[float, float, float]:
        """Mean, standard error and episodes' spread of the window that ends with number `last`."""
        part = slice(last - self.width + 1, last + 1)
        weight = self.episodes[part] / np.sum(self.episodes[part])
        mean = float(np.sum(weight * self.mean[part]))
        spread = float(np.sqrt(np.sum(weight * (self.spread[part] ** 2 + (self.mean[part] - mean) ** 2))))
        return mean, spread / float(np.sqrt(np.sum(self.episodes[part]))), spread


def _returns(record: Record) -> _Returns:
    mean, spread, episodes = record["return_mean"], record["return_std"], record["episodes"]
    known = np.isfinite(mean) & np.isfinite(spread) & np.isfinite(episodes) & (episodes > 0)
    record.enough(known, "updates in which episodes ended")
    return _Returns(np.flatnonzero(known), mean[known], spread[known], episodes[known])


def return_collapsed(record: Record) -> Seen | None:
    """Whether the return fell far from its best and stayed there; from which update on, and how far that moved."""
    returns = _returns(record)
    windows = [returns.over(last) for last in range(returns.width - 1, len(returns.row))]
    means = np.array([mean for mean, _, _ in windows])
    at = int(np.argmax(means))
    (high, high_error, spread), (low, low_error, _) = windows[at], windows[-1]
    fall = high - low
    if not fall > _FALL * (high - float(np.min(means[: at + 1]))):
        return None
    if not fall > max(_FALL_ERRORS * float(np.hypot(high_error, low_error)), _FALL_SPREADS * spread):
        return None
    best = at + returns.width - 1
    onset, fallen = _fall(returns, best, high, min(fall, high - float(np.min(means[: at + 1]))))
    first, last = record.number[returns.row[best - returns.width + 1]], record.number[returns.row[best]]
    moved, cause, remedy = _suspect(record, int(returns.row[onset]), int(returns.row[fallen]))
    return Seen(
        f"the mean return was {plain(high)} in updates {first} to {last} and is {plain(low)} at the end; it fell after "
        f"the batch of update {record.number[returns.row[onset]]}. {moved}",
        cause=cause,
        remedy=remedy,
    )


def _fall(returns: _Returns, best: int, high: float, scale: float) -> tuple[int, int]:
    """The last good batch before the fall and the first batch after it, as places among the returns.

    A batch is good that lacks no more of the best than a share of `scale` and two of its own standard errors.
    """
    start = best - returns.width + 1
    tail = returns.mean[start:]
    # The split into a before and an after that explains most of the variance of the returns since the best.
    counts = np.arange(1, len(tail))
    sums = np.cumsum(tail)[:-1]
    contrast = (sums / counts - (tail.sum() - sums) / (len(tail) - counts)) ** 2 * counts * (len(tail) - counts)
    fallen = start + int(np.argmax(contrast)) + 1
    onset = fallen - 1
    good = returns.mean + 2 * returns.spread / np.sqrt(returns.episodes) >= high - _STILL_GOOD * scale
    while onset > start and not good[onset]:
        onset -= 1
    return onset, fallen


def _suspect(record: Record, onset: int, fallen: int) -> tuple[str, str | None, str | None]:
    """How far the updates of rows onset … fallen - 1 moved the policy, and what that makes of cause and remedy."""
    if "kl" not in record:
        return "How far the updates moved the policy is not recorded.", None, None
    kl = np.where(np.isfinite(record["kl"]) | (record["kl"] == np.inf), record["kl"], 0.0)
    drift = np.nan_to_num(record["normaliser_kl"], posinf=0) if "normaliser_kl" in record else np.zeros_like(kl)
    rows = np.arange(max(onset - 1, 0), fallen)
    row = int(rows[np.argmax((kl + drift)[rows])])
    usual = float(np.median(kl[kl > 0])) if (kl > 0).any() else 0.0
    most = float(kl[row] + drift[row])
    times = f", {plain(most / usual)} times the median update" if usual > 0 else ""
    told = f"The longest move there is that of update {record.number[row]}: KL {plain(most)} nats{times}"
    if drift[row] > kl[row]:
        cause = "The observation normaliser moved the policy, not the update: see normaliser-drift."
        return f"{told}, most of it by the normaliser.", cause, "Bound the observations, or train with --no-normalise."
    if usual > _LONG:
        return f"{told}: all are long.", "Every update moves the policy further than a batch can vouch for.", None
    if not most > _JUMP * usual:
        cause = "No single update jumped: the policy slid, each update following a batch or a critic that misled it."
        remedy = (
            "Look at the explained variance there, raise --critic-epochs, take more steps an update (--envs, "
            "--horizon) or a smaller --radius; --guard takes harmful updates back."
        )
        return f"{told}: none is unusual.{_explained(record, rows)}", cause, remedy
    return f"{told}.", None, None


def _explained(record: Record, rows: np.ndarray) -> str:
    if "explained_variance" not in record:
        return ""
    explained = record["explained_variance"][rows]
    explained = explained[np.isfinite(explained)]
    return f" The critic explained {plain(float(np.median(explained)))} of the variance." if len(explained) else ""


COLLAPSED = Check(
    name="policy-collapsed",
    severity="severe",
    looks_at="`smallest_std` (Gaussian) or `entropy`, with `return_mean` and `return_max`",
    threshold=f"to the end of the run a standard deviation below {_SMALLEST_STD:g} or 1/{_STD_FALL:g} of the first, or "
    f"an entropy below {_ENTROPY_LEFT:.0%} of the first; and since then no episode within {_MISSED:.0%} of the best "
    "before, or a mean return not above the first",
    title="The policy stopped exploring before it was good",
    cause="Steps too long for what the batches can show: the policy became certain of the actions that noise favoured.",
    remedy="Divide --radius by 4 (with ppo, --rule.step_size), take more steps an update (--envs, --horizon), and for "
    "Box actions begin with a larger --log-std.",
    judge=policy_collapsed,
)

SATURATION = Check(
    name="saturation",
    severity="warning",
    looks_at="`action_saturation` in the last half",
    threshold=f"median above {_SATURATED:g}",
    title="Most sampled actions lie beyond the action bounds and are cut off",
    cause="The Gaussian is far wider than the action space, or its mean has left it: different actions do the same, "
    "and the gradient no longer sees a difference.",
    remedy="Begin with a smaller --log-std (-2, say); check that the Box's bounds are the ones that the task uses.",
    judge=saturation,
)

RETURN_COLLAPSED = Check(
    name="return-collapsed",
    severity="severe",
    looks_at="`return_mean`, `return_std`, `episodes`; then `kl` and `normaliser_kl`",
    threshold=f"the last window's mean return (3 updates with episodes, or a twentieth) is below the best window's by "
    f"more than {_FALL:g} of the rise to it, {_FALL_ERRORS:g} standard errors and {_FALL_SPREADS:g} of the episodes' "
    "standard deviation",
    title="The return fell from its best and did not recover",
    cause="One update moved the policy further than its batch could vouch for.",
    remedy="Divide --radius by 4, or use --rule trpo, which checks the step before it takes it; --guard takes updates "
    "back that the next batch shows to be harmful.",
    judge=return_collapsed,
)
