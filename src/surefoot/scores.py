"""What runs come to over seeds and tasks, and how sure that is. Imports nothing slow.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". Scores are arrays
[…, runs, tasks], one column a task; every statistic here keeps leading axes, so that resamples are made at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
FEWEST = 3
"""Fewer seeds than these have no interval."""

_RESAMPLES = 10_000
_AT_ONCE = 2**22  # numbers of resamples held at a time


class Interval(NamedTuple):
    """Where a statistic lies, with the confidence that was asked for."""

    lower: float
    upper: float


class Score(NamedTuple):
    """What the seeds of one setting come to.

    Attributes:
        statistic: "interquartile mean"; "mean" of fewer than three seeds.
        value: of the statistic; None where there is no seed.
        lower, upper: a 95% interval of it; None where there are too few seeds.
    """

    statistic: str
    value: float | None
    lower: float | None = None
    upper: float | None = None


class Improvement(NamedTuple):
    """How likely a run of one setting ends above a run of another.

    Attributes:
        value: the probability, ties as one half.
        lower, upper: a 95% interval of it; None where either has too few seeds.
    """

    value: float
    lower: float | None = None
    upper: float | None = None

    def turned(self) -> Improvement:
        """How likely a run of the other ends above one of this."""
        lower, upper = (None if end is None else 1 - end for end in (self.upper, self.lower))
        return Improvement(1 - self.value, lower, upper)


@functools.lru_cache(maxsize=4096)
def score(returns: tuple[float, ...]) -> Score:
    """The score of one setting from the final return of each seed.

    The mean of the middle half (a quarter of the seeds, rounded down, is left out at either end), with the interval of
    `bootstrap_interval`. The resamples are the same at every call.
    """
    if len(returns) < FEWEST:
        return Score("mean", sum(returns) / len(returns) if returns else None)
    values = _one_task(returns)
    found = bootstrap_interval(interquartile_mean, values)
    return Score("interquartile mean", float(interquartile_mean(values)), *found)


@functools.lru_cache(maxsize=4096)
def improvement(returns: tuple[float, ...], others: tuple[float, ...]) -> Improvement:
    """`probability_of_improvement` on one task, from the final return of each seed of two settings, with its interval.

    Both need a seed. The resamples are the same at every call.
    """
    values = _one_task(returns), _one_task(others)
    probability = float(probability_of_improvement(*values))
    if min(len(returns), len(others)) < FEWEST:
        return Improvement(probability)
    return Improvement(probability, *bootstrap_interval(probability_of_improvement, *values))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half of all runs on all tasks.

    Args:
        scores: [..., runs, tasks]. A quarter of their number, rounded down, is left out at either end.

    Returns: [...].
    """
    from scipy.stats import trim_mean

    return trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How likely a run of X ends above a run of Y, both on a task drawn at random: P(X > Y) + P(X = Y) / 2.

    The mean over tasks of the Mann-Whitney statistic over the product of the numbers of runs.

    Args:
        scores: of X, [..., runs of X, tasks].
        others: of Y, [..., runs of Y, tasks].

    Returns: [...].
    """
    import numpy as np

    difference = scores[..., :, None, :] - others[..., None, :, :]
    return (np.sign(difference).mean(axis=(-3, -2, -1)) + 1) / 2


def bootstrap_interval(
    statistic: Callable[..., np.ndarray],
    *scores: np.ndarray,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> Interval:
    """The percentile interval of the bootstrap over runs, stratified by task.

    Args:
        statistic: of as many arrays as there are `scores`, with leading axes kept: [..., runs, tasks] each to [...].
        scores: [runs, tasks] each, at least two runs. The runs of every column are resampled independently.
        confidence: of the interval, between 0 and 1.
        seed: of the resamples.
        resamples: how many there are.

    Raises ValueError where scores are not finite, have no task or fewer than two runs.
    """
    import numpy as np
    from scipy.stats import bootstrap

    arrays = [np.asarray(array, np.float64) for array in scores]
    for array in arrays:
        if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1 or not np.isfinite(array).all():
            raise ValueError(
                f"scores must be finite numbers [runs, tasks] with at least 2 runs and a task, but {array.shape} came"
            )
    ends = np.cumsum([array.shape[1] for array in arrays])[:-1]

    def of_columns(*columns: np.ndarray, axis: int) -> np.ndarray:
        parts = [columns[first:last] for first, last in zip([0, *ends], [*ends, len(columns)], strict=True)]
        return statistic(*(np.stack(part, axis=-1) for part in parts))

    # What a statistic holds at once is at most the product of the runs: of pairs.
    held = max(array.shape[1] for array in arrays) * math.prod(array.shape[0] for array in arrays)
    found = bootstrap(
        [column for array in arrays for column in array.T],
        of_columns,
        n_resamples=resamples,
        batch=max(1, min(resamples, _AT_ONCE // held)),
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def normalised(scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Scores of tasks on one scale: 0 at `low`, 1 at `high`.

    Args:
        scores: [..., runs, tasks].
        low: [tasks], such as a random policy's.
        high: [tasks], such as the best that is known; above `low`.

    Raises ValueError where a `high` is not above its `low`.
    """
    import numpy as np

    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (high > low).all():
        raise ValueError(f"high must be above low for every task, but {high.tolist()} and {low.tolist()} came")
    return (scores - low) / (high - low)


def _one_task(returns: tuple[float, ...]) -> np.ndarray:
    import numpy as np

    return np.array(returns, np.float64)[:, None]
