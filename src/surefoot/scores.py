"""The interquartile mean over seeds, and how sure it is. Imports nothing slow.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
FEWEST = 3
"""Fewer seeds than these have no interval."""

_RESAMPLES = 10_000


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


@functools.lru_cache(maxsize=4096)
def score(returns: tuple[float, ...]) -> Score:
    """The score of one setting from the final return of each seed.

    The mean of the middle half (a quarter of the seeds, rounded down, is left out at either end), with the interval of
    the percentile bootstrap over seeds, as the source has it. The resamples are the same at every call.
    """
    if len(returns) < FEWEST:
        return Score("mean", sum(returns) / len(returns) if returns else None)
    import numpy as np
    from scipy.stats import bootstrap

    values = np.array(returns, np.float64)
    found = bootstrap(
        (values,),
        interquartile_mean,
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES // 10,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Score("interquartile mean", float(interquartile_mean(values)), float(found.low), float(found.high))


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean along an axis of what is left without the lowest and the highest quarter, each rounded down."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)
