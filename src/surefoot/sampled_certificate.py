"""What samples tell of an update: its realised gain from two consecutive batches, and bounds estimated from one.

Gains here are differences of return. A mean over the batch's states becomes one by the effective horizon
1/(1 - g (1 - w)), w the share of steps that terminate: 1/(1-g) where nothing ends, and the expected discounted
length of an episode where the states after an end are left out of the mean, as they are in a batch. (The function
f = 1 tells: over the live steps the sum of g^t (1 - g + g terminated_t) is 1.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import ndtri, stdtrit

from surefoot.batch import Batch, Trajectory, weighted_sum, weighted_sums
from surefoot.bounds import CATALOGUE, Discounted
from surefoot.config import FEWEST_ENVIRONMENTS
from surefoot.geometry import ratio_mass
from surefoot.policy import Policy

FEWEST_ROWS = 30
# A mean over less than half of the visitation says more of what was left out than of the whole.
LEAST_COVERAGE = 0.5
_RESAMPLES = 1000
_LARGEST_TABLE = 10_000_000  # entries; with very many environments fewer resamples do
_ROUNDING = 1e-12


_NOT_FINITE = "the values are not finite"


class Sums(NamedTuple):
    """Sums over each environment's rows, [N] each: of weight times a quantity, and of weight (1 - g + g terminated).

    The ratio of their totals over all environments is the quantity's sum over an episode, discounted: a return.
    """

    total: Float[np.ndarray, " N"]
    mass: Float[np.ndarray, " N"]

    @property
    def as_return(self) -> float:
        """Total over mass."""
        return float(np.sum(self.total)) / float(np.sum(self.mass))

    def resampled(self) -> Float[np.ndarray, " K"]:
        """The same with the environments resampled, K times."""
        counts = _counts(len(self.mass))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (counts @ self.total) / (counts @ self.mass)


class Estimate(NamedTuple):
    """A number with its bootstrap interval over environments, or null with the reason."""

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    reason: str | None = None


class SampledCertificate(NamedTuple):
    """The part of an update's account that its own batch can give. Gains are differences of return.

    Attributes:
        kl_ratio: real over predicted KL of the step that was taken; None where nothing was predicted.
        gain_ratio: surrogate gain over the linear model's.
        promised_gain: the surrogate gain as a return.
        estimated_bounds: lower bound on the gain by bound id, everything in it estimated from the batch. The largest
            TV, KL and reward are those of the batch, from below; the span of Abar and the largest advantage are
            ranges of noisy single rows, as a rule far too wide. None where the batch cannot say.
        estimated_bounds_reason: why not.
        estimated_bounds_rows: effective sample size of the discounted weights, in rows.
        best_bound: id of the largest of them.
        best_bound_lower: what it says.
        vacuous: whether that is no more than that rewards are bounded.
    """

    kl_ratio: float | None
    gain_ratio: float | None
    promised_gain: float
    estimated_bounds: dict[str, float] | None
    estimated_bounds_reason: str | None
    estimated_bounds_rows: float
    best_bound: str | None
    best_bound_lower: float | None
    vacuous: bool | None


def temporal_difference(
    trajectory: Trajectory, value: Float[Array, "T_plus_1 N"], discount: Float[Array, ""] | float
) -> Float[Array, "T N"]:
    """delta_f = r + g f(s') - f(s) of each row; f is 0 after a termination."""
    going_on = 1 - jnp.asarray(trajectory.terminated, value.dtype)
    return trajectory.reward + discount * going_on * value[1:] - value[:-1]


def over_environments(
    value: Float[Array, "T N"],
    weight: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    discount: Float[Array, ""] | float,
) -> tuple[Array, Array]:
    """`Sums` of a quantity, as they are on the device; rows of weight 0 do not count whatever they hold."""
    total = jnp.sum(weight * jnp.where(weight > 0, value, 0), axis=0)
    return total, jnp.sum(weight * jnp.where(terminated, 1, 1 - discount), axis=0)


def effective_horizon(discount: float, terminating: float) -> float:
    """1/(1 - g (1 - w)) steps, for the share w of steps that terminate."""
    return 1 / (1 - discount * (1 - terminating))


def realised_gain(before: Sums, after: Sums, confidence: float) -> Estimate:
    """J(pi') - J(pi) from what both policies met, without further episodes.

    For any function f of states, J(pi') - J(pi) = (<d', delta_f> - <d, delta_f>)/(1-g) (the performance difference,
    Kakade & Langford 2002, telescoped with f in place of V): the temporal differences of a critic frozen at the
    update, in the batch that pi' collected less those in the batch that pi collected. With the critic exact it is
    what the advantages of pi' are worth over its own states.

    Arguments:
        before: of delta_f in the batch that the update was computed from.
        after: the same in the next one.
        confidence: of the percentile interval, in (0, 1); environments are resampled, each with both its batches.

    Differences from the source: (1) the two batches stand for d and d' with the run's weighting of states, so
    without discounted weights this is the gain for starts where the batches are; an f that is wrong in different
    ways where the two batches happen to be adds that difference.
    """
    if not (before.mass.any() and after.mass.any()):
        return Estimate(reason="a batch without experience")
    value = after.as_return - before.as_return
    if not np.isfinite(value):
        return Estimate(reason=_NOT_FINITE)
    return interval(value, after.resampled() - before.resampled(), len(before.mass), confidence)


def held_out_gain(sums: Sums, confidence: float) -> Estimate:
    """The surrogate gain on environments that the step was not fitted to, which makes it unbiased, as a return."""
    held = sums.mass > 0
    if not held.any():
        return Estimate(reason="a batch without experience")
    sums = Sums(sums.total[held], sums.mass[held])
    if not np.isfinite(sums.as_return):
        return Estimate(reason=_NOT_FINITE)
    return interval(sums.as_return, sums.resampled(), int(held.sum()), confidence)


def interval(value: float, draws: Float[np.ndarray, " K"], environments: int, confidence: float) -> Estimate:
    """The percentile interval of bootstrap `draws`; none with too few environments to resample.

    It is stretched about the value as Student's interval is against the normal one, and by sqrt(N/(N-1)): of few
    environments the resamples spread too little, and a 99% interval of 8 would miss three times as often as it says.
    """
    if environments < FEWEST_ENVIRONMENTS:
        reason = f"{environments} environments are too few to resample (at least {FEWEST_ENVIRONMENTS})"
        return Estimate(value=value, reason=reason)
    tail = (1 - confidence) / 2
    quantiles = np.nanquantile(draws, [tail, 1 - tail])
    normal = ndtri(tail)
    stretch = stdtrit(environments - 1, tail) / normal if normal else 1.0
    stretch *= np.sqrt(environments / (environments - 1))
    lower, upper = value + stretch * (quantiles - value)
    return Estimate(value, float(lower), float(upper))


@lru_cache(maxsize=2)
def _counts(environments: int) -> Float[np.ndarray, "K N"]:
    """How often each environment is drawn in each resample: one fixed table, so that a certificate depends on
    nothing but the batches."""
    resamples = int(np.clip(_LARGEST_TABLE // environments, 100, _RESAMPLES))
    generator = np.random.default_rng(environments)
    share = np.full(environments, 1 / environments)
    return generator.multinomial(environments, share, size=resamples).astype(np.float64)


Scalar: TypeAlias = Any
"""An array of no shape on the device, a float on the host."""


class Moved(NamedTuple):
    """How a policy moved and what it gains, with weights g^t: what the bounds are estimated from.

    Means are over the batch's live states. Abar of a row's state is estimated by (ratio - 1) A.
    """

    surrogate: Scalar
    terminating: Scalar
    mean_tv: Scalar
    max_tv: Scalar
    mean_kl: Scalar
    mean_reverse_kl: Scalar
    max_kl: Scalar
    smallest: Scalar
    largest: Scalar
    largest_advantage: Scalar
    least_reward: Scalar
    most_reward: Scalar
    error: Scalar
    start_value: Scalar


def advantage_change(policy: Policy, batch: Batch) -> Float[Array, " B"]:
    """(ratio - 1) A of each row, 0 where it has no weight: its mean is the surrogate gain with far less noise than
    ratio A has."""
    new = ratio_mass(batch, policy(batch.observation, batch.mask).log_prob(batch.action))
    old = ratio_mass(batch, batch.old.log_prob(batch.action))
    counted = batch.weight > 0
    share = jnp.where(counted, new - old, 0) / jnp.where(counted, batch.weight, 1)
    return share * batch.advantage


def movement_from_start(
    policy: Policy,
    batch: Batch,
    weight: Float[Array, " B"],
    *,
    time: Int[Array, " B"],
    terminated: Bool[Array, " B"],
    reward: Float[Array, " B"],
    error: Float[Array, " B"],
    value: Float[Array, " B"],
) -> Moved:
    """`Moved` of a policy under weights [B] that sum to 1; `error` is delta_f and `value` f of each row."""
    new = policy(batch.observation, batch.mask)
    tv, kl, reverse = batch.old.tv(new), batch.old.kl(new), new.kl(batch.old)
    change = advantage_change(policy, batch)
    counted = weight > 0

    first = (counted & (time == 0)).astype(weight.dtype)
    ended = terminated.astype(weight.dtype)
    surrogate, terminating, mean_tv, mean_kl, mean_reverse, mean_error = weighted_sums(
        weight, change, ended, tv, kl, reverse, error
    )
    sizes = tv, kl, change, -change, jnp.abs(batch.advantage), -reward, jnp.abs(reward)
    max_tv, max_kl, most, least, size, loss, most_reward = jnp.max(
        jnp.where(counted, jnp.stack(sizes), -jnp.inf), axis=1
    )
    return Moved(
        surrogate=surrogate,
        terminating=terminating,
        mean_tv=mean_tv,
        max_tv=max_tv,
        mean_kl=mean_kl,
        mean_reverse_kl=mean_reverse,
        max_kl=max_kl,
        smallest=-least,
        largest=most,
        largest_advantage=size,
        least_reward=-loss,
        most_reward=most_reward,
        error=mean_error,
        start_value=weighted_sum(first / jnp.maximum(jnp.sum(first), 1), value),
    )


def discounted_rows(
    time: Int[np.ndarray, "T N"],
    real: Bool[np.ndarray, "T N"],
    terminated: Bool[np.ndarray, "T N"],
    discount: float,
) -> tuple[float, str | None]:
    """The effective sample size of the weights g^t, and why the batch cannot stand for the discounted visitation.

    None as the reason where it can: there are rows of time 0, at least 30 effective rows, and the batch's times
    leave out less than half of the visitation. The last is judged by the count of rows at each time, which should
    not be below that of any later time, as who is there later was there before; whoever has not terminated at the
    last time goes on for ever.
    """
    times = time[real]
    if not times.size:
        return 0.0, "a batch without experience"
    weight = discount ** times.astype(np.float64)
    rows = float(weight.sum() ** 2 / np.sum(weight**2)) if weight.any() else 0.0
    if not np.any(times == 0):
        return rows, "no episode begins in this batch"
    if rows < FEWEST_ROWS:
        return rows, f"{rows:.1f} effective rows are too few (at least {FEWEST_ROWS})"
    counts = np.bincount(times)
    expected = np.maximum.accumulate(counts[::-1])[::-1]
    discounts = discount ** np.arange(len(counts))
    going_on = int(counts[-1]) - int(np.sum(terminated & real & (time == len(counts) - 1)))
    after = going_on * discount ** len(counts) / (1 - discount)
    covered = float(discounts @ counts) / (float(discounts @ expected) + after)
    if covered < LEAST_COVERAGE:
        return rows, f"the batch's times cover {covered:.0%} of the discounted visitation"
    return rows, None


def estimated_bounds(moved: Moved, discount: float) -> tuple[dict[str, float], bool]:
    """Every bound of the catalogue that samples can be asked for, as a lower bound on the gain in return; whether
    the best is vacuous. All of it is estimated, spans and maxima over states from single noisy rows.
    """
    horizon = effective_horizon(discount, moved.terminating)
    # Beyond an end nothing differs: there the disagreement and Abar are 0, with the rest of the visitation.
    live = (1 - discount) * horizon
    ends = live < 1 - _ROUNDING
    low, high = (min(moved.smallest, 0.0), max(moved.largest, 0.0)) if ends else (moved.smallest, moved.largest)
    quantities = Discounted(
        discount=discount,
        span=max(high - low, 0.0),
        largest=max(abs(low), abs(high)),
        largest_advantage=moved.largest_advantage,
        mean_tv=live * moved.mean_tv,
        max_tv=min(moved.max_tv, 1.0),
        mean_kl=live * moved.mean_kl,
        mean_reverse_kl=live * moved.mean_reverse_kl,
        max_kl=moved.max_kl,
        shift=float("nan"),
        overlap=float("nan"),
        transfer=float("nan"),
        least_reward=moved.least_reward,
        largest_reward=moved.most_reward,
    )
    gain = horizon * moved.surrogate
    lower = {
        bound.id: gain - bound.discounted(quantities) / (1 - discount)
        for bound in CATALOGUE
        if bound.needs == "samples" and bound.valid(quantities)
    }
    expected_return = moved.start_value + horizon * moved.error
    # An episode that can end at once cannot be made to earn less than its first reward where rewards are positive.
    steps = 1.0 if ends and moved.least_reward > 0 else 1 / (1 - discount)
    return lower, max(lower.values()) <= moved.least_reward * steps - expected_return


def sampled_certificate(
    report: Any, horizon: float, rows: float, reason: str | None, moved: Moved | None, discount: float
) -> SampledCertificate:
    """The account of an update from its UpdateReport (plain numbers) and, where the batch can say, `moved`."""
    taken = bool(report.accepted)
    predicted_kl = float(report.scale) ** 2 * float(report.predicted_kl)
    predicted_gain = float(report.scale) * float(report.predicted_gain)
    bounds = vacuous = None
    if moved is not None:
        moved = Moved(*map(float, moved))
        if np.isnan(moved).any():
            reason = _NOT_FINITE
        else:
            bounds, vacuous = estimated_bounds(moved, discount)
    best = max(bounds, key=lambda name: bounds[name]) if bounds else None
    return SampledCertificate(
        kl_ratio=_ratio(float(report.kl), predicted_kl) if taken else None,
        gain_ratio=_ratio(float(report.surrogate_gain), predicted_gain) if taken else None,
        promised_gain=horizon * float(report.surrogate_gain),
        estimated_bounds=bounds,
        estimated_bounds_reason=None if bounds else reason,
        estimated_bounds_rows=rows,
        best_bound=best,
        best_bound_lower=bounds[best] if bounds and best else None,
        vacuous=vacuous,
    )


def _ratio(real: float, predicted: float) -> float | None:
    return real / predicted if predicted > 0 else None
